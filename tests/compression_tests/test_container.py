"""The download container: byte for byte, small, and safe against damage."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.container import (
    MAGIC,
    Section,
    assemble,
    decode,
    encode_onnx,
    sections_of,
)
from compression.container_codecs import pack_integers
from compression.container_values import Codec
from compression.decisions import Quantize
from compression.errors import CheckpointInvalid, CompressionError
from compression.export import export_onnx
from compression.models.cifar_resnet import cifar_resnet
from compression.primitives.quantize import quantize_onnx
from tests.compression_tests.test_container_codecs import (
    EXPECTED,
    GOLDEN,
    floats,
    tensors_only,
)
from tests.compression_tests.test_export import random_norms


@pytest.fixture(scope="module")
def graphs() -> tuple[bytes, bytes]:
    torch.manual_seed(0)
    exact = export_onnx(random_norms(cifar_resnet(8)), (3, 32, 32))
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)
    return exact, quantize_onnx(exact, images, Quantize())


@pytest.fixture(scope="module")
def small() -> bytes:
    rng = np.random.default_rng(0)
    return encode_onnx(
        tensors_only(
            np.rint(rng.laplace(0, 9, 4000)).clip(-127, 127).astype(np.int8),
            rng.standard_normal(700, dtype=np.float32),
            rng.standard_normal(60, dtype=np.float32),
            np.zeros(900, np.int8),
            rng.integers(0, 2**31, 600, dtype=np.int64),
            *(floats(kind, 7) for kind in EXPECTED),
        )
    )


def test_float_and_int8_graphs_come_back_and_are_smaller(graphs: tuple[bytes, bytes]) -> None:
    for onnx in graphs:
        coded = encode_onnx(onnx)
        assert decode(coded) == onnx
        assert len(coded) < len(onnx)
        assert len(coded) < len(zstandard.ZstdCompressor(level=19).compress(onnx))
        assert coded == encode_onnx(onnx)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["int8", "uint8", "int32", "float32", "float64", "float16"]),
            st.integers(0, 900),
            st.floats(0.0, 60.0),
            st.integers(0, 2**32 - 1),
        ),
        max_size=6,
    )
)
def test_any_tensors_come_back(parts: list[tuple[str, int, float, int]]) -> None:
    tensors = []
    for kind, size, spread, seed in parts:
        values = np.random.default_rng(seed).normal(0, spread, size)
        tensors.append(np.clip(np.nan_to_num(values), -128, 127).astype(np.float64).astype(kind))
    onnx = tensors_only(*tensors)
    assert decode(encode_onnx(onnx)) == onnx


def test_bytes_after_the_graph_and_empty_models_survive() -> None:
    assert decode(encode_onnx(b"")) == b""
    onnx = tensors_only(np.arange(64, dtype=np.int8)) + b"\x32\x03abc"
    assert decode(encode_onnx(onnx)) == onnx


def test_what_is_not_onnx_is_refused() -> None:
    with pytest.raises(CompressionError, match="Not an ONNX model"):
        encode_onnx(b"\x3a\xff\xff\xff\x7f")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_found(small: bytes, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "zero"]))
    broken = bytearray(small)
    place = data.draw(st.integers(0, len(small) - 1))
    if kind == "flip":
        broken[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del broken[place:]
    elif kind == "extend":
        broken += data.draw(st.binary(min_size=1, max_size=30))
    else:
        broken[place] = (broken[place] + 128) % 256
    with pytest.raises(CheckpointInvalid):
        decode(bytes(broken))


def resealed(body: bytes) -> bytes:
    """Give hostile bytes a matching checksum, as an attacker would."""
    return body[:12] + struct.pack("<I", zlib.crc32(body[16:])) + body[16:]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_hostile_bytes_with_a_right_checksum_never_crash(small: bytes, data: st.DataObject) -> None:
    broken = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(12, len(small) - 1))
        broken[place] = data.draw(st.integers(0, 255))
    try:
        found = decode(resealed(bytes(broken)), max_bytes=1 << 20)
    except CheckpointInvalid:
        return
    # Only a change that changes nothing may pass: the digest of the content must still match.
    assert hashlib.sha256(found).digest() == bytes(broken[24:56])


@pytest.fixture(scope="module")
def parts() -> tuple[bytes, dict[Section, bytes]]:
    """A model of every codec and its sections."""
    rng = np.random.default_rng(1)
    int8 = np.rint(rng.laplace(0, 9, (30, 90)) * np.linspace(0.2, 2, 90)).clip(-99, 99)
    onnx = tensors_only(
        int8.astype(np.int8),
        rng.standard_normal(300, dtype=np.float32),
        np.tile(rng.integers(0, 255, 300), 12),
        *(floats(kind, 8) for kind in EXPECTED),
    )
    return onnx, sections_of(onnx)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_hostile_sections_never_crash(
    parts: tuple[bytes, dict[Section, bytes]], data: st.DataObject
) -> None:
    """Sections that an attacker wrote, sealed as a right container: only the refusal comes out."""
    onnx, plain = parts
    broken = dict(plain)
    often = [Section.TABLE, Section.TABLE, Section.STEPS]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*often, *Section]))
        part = bytearray(broken[name])
        kind = data.draw(st.sampled_from(["set", "huge", "cut", "extend", "splice"]))
        place = data.draw(st.integers(0, max(len(part) - 1, 0)))
        if kind == "set" and part:
            part[place] = data.draw(st.integers(0, 255))
        elif kind == "huge":
            part[place:place] = b"\xff" * data.draw(st.integers(1, 9)) + b"\x7f"
        elif kind == "cut":
            del part[place : place + data.draw(st.integers(1, 40))]
        elif kind == "extend":
            part += data.draw(st.binary(min_size=1, max_size=40))
        else:
            other = plain[data.draw(st.sampled_from(list(Section)))]
            part[place:place] = other[place : place + 50]
        broken[name] = bytes(part)
    if broken == plain:
        return
    try:
        found = decode(assemble(onnx, broken), max_bytes=1 << 20)
    except CheckpointInvalid:
        return
    # Only a change that changes nothing may pass.
    assert found == onnx


def test_hostile_tables_take_no_memory(parts: tuple[bytes, dict[Section, bytes]]) -> None:
    """Declared counts, alphabets, rows and blocks far above what is there are refused at once."""
    onnx, plain = parts
    size = len(onnx)
    tables = [
        [2**62],
        [1, 0, 2**40, 3],
        [1, 0, size, Codec.INT8, 0, 2**40],
        [1, 0, size, Codec.INT8, 200, 256],
        [1, 0, size, Codec.PALETTE, 0, 65, 1],
        [1, 0, size // 4 * 4, Codec.PALETTE, 0, 1, 65535],
        [1, 0, size // 4 * 4, Codec.PALETTE, 0, 1, 0],
        [1, 0, size // 4 * 4, Codec.GRID, 0, 2**40, 0, 1],
        [1, 0, size // 4 * 4, Codec.GRID, 0, 1, 2**15, 2**16],
        [1, 0, size // 4 * 4, Codec.GRID, 0, 0, 0, 1],
        [1, 0, size, 2],
        [1, 0, size, 7],
        [1, 0, size, Codec.RAW],
        [1, 0, size, Codec.ZSTD, size],
    ]
    tracemalloc.start()
    for table in tables:
        with pytest.raises(CheckpointInvalid):
            decode(assemble(onnx, {**plain, Section.TABLE: pack_integers(table)}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * size


def test_declared_sizes_are_checked_before_memory_is_taken(small: bytes) -> None:
    huge = bytearray(small)
    struct.pack_into("<Q", huge, 16, 2**40)
    with pytest.raises(CheckpointInvalid, match="at most"):
        decode(resealed(bytes(huge)))
    sizes = pack_integers([2**62, 10, *[0] * 20])
    with pytest.raises(CheckpointInvalid, match="at most"):
        decode(resealed(small[:56] + sizes))
    frame = zstandard.ZstdCompressor().compress(bytes(3000))
    sizes = pack_integers([4000, len(frame), *[0] * 20])
    with pytest.raises(CheckpointInvalid, match="declares 3000 bytes; 4000"):
        decode(resealed(small[:56] + sizes + frame))
    for wrong in ([10, 20], [0, 0]):
        with pytest.raises(CheckpointInvalid):
            decode(resealed(small[:56] + pack_integers([*wrong, *[0] * 20]) + bytes(20)))


def test_hostile_files_of_version_1_never_crash() -> None:
    golden = (GOLDEN / "version1.ppz").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(golden)
        for _ in range(int(rng.integers(1, 4))):
            broken[int(rng.integers(8, len(golden)))] = int(rng.integers(0, 256))
        try:
            found = decode(resealed(bytes(broken)), max_bytes=1 << 20)
        except CheckpointInvalid:
            continue
        assert hashlib.sha256(found).digest() == bytes(broken[24:56])
    with pytest.raises(CheckpointInvalid):
        decode(resealed(golden[:60]))


def test_limit_of_the_caller_holds(small: bytes) -> None:
    size = struct.unpack_from("<Q", small, 16)[0]
    assert len(decode(small, max_bytes=size)) == size
    with pytest.raises(CheckpointInvalid, match="at most"):
        decode(small, max_bytes=size - 1)


def test_other_files_and_versions_are_refused(small: bytes) -> None:
    for data in (b"", MAGIC, b"PK\x03\x04" + bytes(100)):
        with pytest.raises(CheckpointInvalid, match=r"Not a \.ppz"):
            decode(data)
    newer = small[:8] + struct.pack("<I", 3) + small[12:]
    with pytest.raises(CheckpointInvalid, match="version is 3"):
        decode(newer)
