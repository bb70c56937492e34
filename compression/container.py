"""The download container `.ppz`: an ONNX file, entropy-coded, given back byte for byte.

The file's weights are cut out; what is left (the graph and all names) is compressed as one text,
and each tensor by whatever codec makes it smallest. `docs/ppz-format.md` is the specification.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib
from collections.abc import Mapping

from compression.container_codecs import (
    Cursor,
    IntegerReader,
    join_planes,
    pack_integers,
    pack_zstd,
    split_planes,
    unpack_zstd,
)
from compression.container_symbols import SymbolReader, SymbolWriter
from compression.container_tensors import TensorWriter
from compression.container_v1 import decode_v1
from compression.container_values import (
    Codec,
    Sections,
    read_grid,
    read_int8,
    read_palette,
)
from compression.errors import CheckpointInvalid
from compression.onnx_payload import payloads

# Like PNG's: the first byte is not text, and the line ends show a transfer that changed them.
MAGIC = b"\x89PPZ\r\n\x1a\n"
VERSION = 2

MAX_CONTENT_BYTES = 2**31 - 1
"""Protocol Buffers end here, and so does an ONNX file that carries its own weights."""

# magic, version, CRC-32 of all that follows it, content size, SHA-256 of the content
_FIXED = struct.Struct("<8sI I Q32s")
_CRC_END = 16
_HEAD_SIZES_V1 = struct.Struct("<QQ")


class Section(enum.IntEnum):
    """The parts of a container, in order."""

    TABLE = 0
    STEPS = 1
    GRAPH = 2
    WORDS_0 = 3
    WORDS_1 = 4
    WORDS_2 = 5
    WORDS_3 = 6
    HALVES_0 = 7
    HALVES_1 = 8
    SYMBOLS = 9
    BULK = 10


WORDS = (Section.WORDS_0, Section.WORDS_1, Section.WORDS_2, Section.WORDS_3)
HALVES = (Section.HALVES_0, Section.HALVES_1)
_STORED = (Section.SYMBOLS, Section.BULK)


def encode_onnx(onnx: bytes) -> bytes:
    """Return the container of a serialized ONNX model; equal models give equal bytes.

    Raises:
        CompressionError: The bytes are not an ONNX model.
        CheckpointInvalid: The model is larger than an ONNX file may be.
    """
    if len(onnx) > MAX_CONTENT_BYTES:
        raise CheckpointInvalid(f"The model has {len(onnx)} bytes; {MAX_CONTENT_BYTES} fit")
    return assemble(onnx, sections_of(onnx))


def sections_of(onnx: bytes) -> dict[Section, bytes]:
    """Return the sections of a model's container before they are compressed."""
    writer, graph, position = TensorWriter(), bytearray(), 0
    for payload in payloads(onnx):
        gap = payload.start - position
        if writer.add(onnx[payload.start : payload.end], payload, gap):
            graph += onnx[position : payload.start]
            position = payload.end
    graph += onnx[position:]
    symbols = SymbolWriter()
    for values, coding in writer.symbols:
        symbols.add(values, coding)
    parts = {
        Section.TABLE: pack_integers([writer.tensors]) + bytes(writer.table),
        Section.STEPS: bytes(writer.steps),
        Section.GRAPH: bytes(graph),
        Section.SYMBOLS: symbols.words(),
        Section.BULK: bytes(writer.bulk),
    }
    for names, data in ((WORDS, writer.words), (HALVES, writer.halves)):
        planes, size = split_planes(bytes(data), len(names)), len(data) // len(names)
        for index, name in enumerate(names):
            parts[name] = planes[index * size : (index + 1) * size]
    return parts


def assemble(onnx: bytes, parts: Mapping[Section, bytes]) -> bytes:
    """Return the container that holds these sections, each compressed where that helps."""
    stored, sizes = bytearray(), []
    for name in Section:
        part = parts[name]
        packed = part if name in _STORED or not part else pack_zstd(part)
        kept = packed if len(packed) < len(part) else part
        sizes += [len(part), len(kept)]
        stored += kept
    fixed = _FIXED.pack(MAGIC, VERSION, 0, len(onnx), hashlib.sha256(onnx).digest())
    rest = fixed[_CRC_END:] + pack_integers(sizes) + bytes(stored)
    return fixed[: _CRC_END - 4] + struct.pack("<I", zlib.crc32(rest)) + rest


def decode(container: bytes, *, max_bytes: int = MAX_CONTENT_BYTES) -> bytes:
    """Return the ONNX file of a container, byte for byte.

    Args:
        container: What `encode_onnx` made; it may be damaged or hostile.
        max_bytes: Largest file to give back; memory stays within a small multiple of it.

    Raises:
        CheckpointInvalid: It is not a container, of another version, damaged, or too large.
    """
    if len(container) < _FIXED.size or not container.startswith(MAGIC):
        raise CheckpointInvalid(f"Not a .ppz container ({len(container)} bytes, no signature)")
    _, version, crc, size, digest = _FIXED.unpack_from(container)
    if version not in (1, VERSION):
        raise CheckpointInvalid(f"Container version is {version}; 1 to {VERSION} are known")
    if zlib.crc32(memoryview(container)[_CRC_END:]) != crc:
        raise CheckpointInvalid("The container is damaged: its checksum differs")
    if size > max_bytes:
        raise CheckpointInvalid(
            f"The container holds {size} bytes; at most {max_bytes} are allowed"
        )
    body = container[_FIXED.size :]
    content = _decode_v1(body, size) if version == 1 else _content(read_sections(body, size), size)
    if len(content) != size or hashlib.sha256(content).digest() != digest:
        raise CheckpointInvalid("The decoded model's SHA-256 differs from the container's")
    return content


def _decode_v1(body: bytes, size: int) -> bytes:
    if len(body) < _HEAD_SIZES_V1.size:
        raise CheckpointInvalid(f"The container ends {len(body)} bytes after its fixed part")
    return decode_v1(body[_HEAD_SIZES_V1.size :], size, *_HEAD_SIZES_V1.unpack_from(body))


def read_sections(body: bytes, size: int) -> dict[Section, bytes]:
    """Return the sections, decompressed; each size is checked before memory is taken.

    Args:
        body: All that follows the fixed part.
        size: Bytes of the content.

    Raises:
        CheckpointInvalid: A size does not fit the content or the container.
    """
    reader = IntegerReader(body)
    # No section stands for more than this: a tensor's histograms never outgrow its symbols.
    limits = dict.fromkeys(Section, 4 * size + 4096)
    limits |= {Section.GRAPH: size, **dict.fromkeys((*WORDS, *HALVES), size // 2)}
    sizes = {name: (reader.read(limits[name]), reader.read(len(body))) for name in Section}
    position = reader.position
    if position + sum(kept for _, kept in sizes.values()) != len(body):
        raise CheckpointInvalid(f"The sections do not fill the {len(body)} bytes of the container")
    parts = {}
    for name, (plain, kept) in sizes.items():
        part = body[position : position + kept]
        position += kept
        if kept > plain or (name in _STORED and kept != plain):
            raise CheckpointInvalid(f"Section {name.name} of {plain} bytes is stored in {kept}")
        parts[name] = part if kept == plain else unpack_zstd(part, plain)
    return parts


def _content(parts: Mapping[Section, bytes], size: int) -> bytes:
    for names in (WORDS, HALVES):
        if len({len(parts[name]) for name in names}) > 1:
            raise CheckpointInvalid(
                f"The planes {names[0].name} to {names[-1].name} differ in size"
            )
    planes = {names: b"".join(parts[name] for name in names) for names in (WORDS, HALVES)}
    sections = Sections(
        IntegerReader(parts[Section.TABLE]),
        Cursor(parts[Section.STEPS], "STEPS"),
        Cursor(join_planes(planes[WORDS], len(WORDS)), "WORDS"),
        Cursor(join_planes(planes[HALVES], len(HALVES)), "HALVES"),
        SymbolReader(parts[Section.SYMBOLS]),
    )
    graph, bulk = Cursor(parts[Section.GRAPH], "GRAPH"), Cursor(parts[Section.BULK], "BULK")
    left = size
    pieces: list[bytes | memoryview] = []
    for _ in range(sections.table.read(size)):
        gap = sections.table.read(left)
        length = sections.table.read(left - gap)
        left -= gap + length
        pieces += [graph.take(gap), _tensor(sections, bulk, length)]
    pieces.append(graph.take(left))
    for section in (graph, bulk, sections.steps, sections.words, sections.halves):
        section.finish()
    sections.symbols.finish()
    if sections.table.rest():
        raise CheckpointInvalid(f"The table has {len(sections.table.rest())} bytes too many")
    return b"".join(pieces)


def _tensor(sections: Sections, bulk: Cursor, size: int) -> bytes | memoryview:
    codec = sections.table.read(max(Codec))
    if codec == Codec.RAW:
        return bulk.take(size)
    if codec == Codec.ZSTD:
        return unpack_zstd(bytes(bulk.take(sections.table.read(size))), size)
    if codec == Codec.INT8:
        return read_int8(sections, size)
    if codec == Codec.POOLED:
        return sections.words.take(size)
    if codec == Codec.PALETTE:
        return read_palette(sections, size)
    if codec == Codec.GRID:
        return read_grid(sections, size)
    raise CheckpointInvalid(f"Codec {codec} is unknown")
