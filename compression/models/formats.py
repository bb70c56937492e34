"""What a weights file is, told from its header alone; torch-free, nothing is unpickled.

Accepted are safetensors; for the format `state_dict` the zip archives that `torch.save` writes
(since PyTorch 1.6) when they hold tensors and plain containers only; and for the format `onnx`
ONNX files that hold their own weights. Everything that runs code on loading is refused: pickles,
TorchScript, `torch.export` programs.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from compression.errors import ModelRefused
from compression.models.onnx_header import read_onnx_header
from compression.models.safetensors_header import check_safetensors
from compression.models.torch_archive import check_torch_archive

HEAD_BYTES = 4096

ACCEPTED = (
    "accepted are safetensors, and state dicts that torch.save wrote as a zip archive "
    "(format 'state_dict')"
)

PICKLE_PROTOCOLS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
LEGACY_TORCH = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The pickled magic number that opened torch.save's files before PyTorch 1.6."""


def check_weights(data: bytes | Path, declared: str) -> None:
    """Require that a file looks like the declared format, reading headers only.

    Args:
        data: The file's content, or where it is.
        declared: `safetensors`, `state_dict`, `python` (either of the two), or `onnx`.

    Raises:
        ModelRefused: Saying what was found and what is accepted.
    """
    if declared not in ("safetensors", "state_dict", "python", "onnx"):
        raise ModelRefused(
            f"format is {declared!r}; 'safetensors', 'state_dict', 'python' and 'onnx' exist"
        )
    if isinstance(data, Path):
        with data.open("rb") as stream:
            _check_stream(stream, data.stat().st_size, declared)
    else:
        _check_stream(io.BytesIO(data), len(data), declared)


def looks_like_safetensors(head: bytes) -> bool:
    """Return whether a file begins as safetensors: a length below 4 GiB, then a JSON object."""
    return head[4:9] == b"\x00\x00\x00\x00{"


def _check_stream(stream: BinaryIO, size_bytes: int, declared: str) -> None:
    head = stream.read(HEAD_BYTES)
    if not head:
        raise ModelRefused(f"The weights file is empty; {ACCEPTED}")
    stream.seek(0)
    if declared == "onnx":
        if not _looks_like_onnx(head):
            raise ModelRefused(f"The weights file is {describe(head)} but was declared 'onnx'")
        read_onnx_header(stream, size_bytes)
    elif looks_like_safetensors(head):
        if declared == "state_dict":
            raise ModelRefused(
                "The weights file is safetensors but was declared 'state_dict'; "
                "declare the format 'safetensors'"
            )
        check_safetensors(stream, size_bytes)
    elif head.startswith(b"PK\x03\x04"):
        kind = check_torch_archive(stream)
        if declared == "safetensors":
            raise ModelRefused(
                f"The weights file is {kind} but was declared 'safetensors'; "
                "declare the format 'state_dict', or convert it"
            )
    else:
        raise ModelRefused(f"The weights file is {describe(head)}; {ACCEPTED}")


def describe(head: bytes) -> str:
    """Return in words what a file with these first bytes is."""
    text = head[:512].lstrip().lower()
    if head.startswith(PICKLE_PROTOCOLS):
        if head[2 : 2 + len(LEGACY_TORCH)] == LEGACY_TORCH:
            return (
                "a legacy torch.save file (a bare pickle, from before PyTorch 1.6): load it with "
                "weights_only=True where you trust it and save the tensors as safetensors"
            )
        return "a Python pickle, which runs code when it is loaded"
    for marks, words in _SIGNATURES:
        if head.startswith(marks):
            return words
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "an HTML or XML page (a download that was answered with a web page?)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run git lfs pull)"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if _looks_like_onnx(head):
        return "an ONNX model (declare the format 'onnx' and the architecture 'onnx')"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return f"of no known format (it begins with {head[:8].hex(' ')})"


_SIGNATURES: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras weights?)"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    ((b"PK\x05\x06", b"PK\x07\x08"), "an empty or spanned zip archive"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x7fELF", "a program"),
    (b"{", "a JSON text"),
)


def _looks_like_onnx(head: bytes) -> bool:
    """Return whether the bytes begin as an ONNX ModelProto.

    Field 1 (`ir_version`, varint, tag 0x08) comes first and is small; then follow
    length-delimited fields: 2 producer, 7 graph, 8 opset import.
    """
    return len(head) > 2 and head[0] == 0x08 and head[1] < 0x40 and head[2] in (0x12, 0x3A, 0x42)
