"""The download container: byte for byte, small, and safe against damage."""

from __future__ import annotations

import bisect
import hashlib
import struct
import zlib

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compression.container import MAGIC, decode, encode_onnx
from compression.container_codecs import (
    IntegerReader,
    count_values,
    join_planes,
    pack_ans,
    pack_integers,
    split_planes,
    unpack_ans,
)
from compression.errors import CheckpointInvalid, CompressionError
from compression.export import export_onnx
from compression.models.cifar_resnet import cifar_resnet
from compression.plan import Quantize
from compression.primitives.quantize import quantize_onnx
from tests.compression_tests.test_export import random_norms

FIXED_BYTES = 72


def model_of(*tensors: np.ndarray) -> bytes:
    """Return a model that holds these tensors and does nothing with them."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    weights = [numpy_helper.from_array(t, f"w{i}") for i, t in enumerate(tensors)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [output])
    graph.initializer.extend(weights)
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


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
        model_of(
            np.rint(rng.laplace(0, 9, 4000)).clip(-127, 127).astype(np.int8),
            rng.standard_normal(700, dtype=np.float32),
            rng.standard_normal(60, dtype=np.float32),
            np.zeros(900, np.int8),
            rng.integers(0, 2**31, 600, dtype=np.int64),
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
    onnx = model_of(*tensors)
    assert decode(encode_onnx(onnx)) == onnx


def test_bytes_after_the_graph_and_empty_models_survive() -> None:
    assert decode(encode_onnx(b"")) == b""
    onnx = model_of(np.arange(64, dtype=np.int8)) + b"\x32\x03abc"
    assert decode(encode_onnx(onnx)) == onnx


def test_what_is_not_onnx_is_refused() -> None:
    with pytest.raises(CompressionError, match="Not an ONNX model"):
        encode_onnx(b"\x3a\xff\xff\xff\x7f")


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600))
def test_planes_and_ans_are_lossless(data: bytes) -> None:
    padded = data + bytes(-len(data) % 4)
    assert join_planes(split_planes(padded)) == padded
    low, counts = count_values(data)
    if len(counts) > 1:
        assert unpack_ans(pack_ans(data, low, counts), low, counts) == data


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_integers_round_trip(values: list[int]) -> None:
    reader = IntegerReader(pack_integers(values) + b"tail")
    assert [reader.read(2**63) for _ in values] == values
    assert reader.rest() == b"tail"


def test_documented_entropy_code_is_what_is_written() -> None:
    """A decoder written from docs/ppz-format.md alone, in plain integers, reads the stream."""
    values = np.rint(np.random.default_rng(4).laplace(0, 11, 3000)).clip(-100, 90).astype(np.int8)
    low, counts = count_values(values.tobytes())
    words = list(
        struct.unpack(
            f"<{(n := len(pack_ans(values.tobytes(), low, counts))) // 4}I",
            pack_ans(values.tobytes(), low, counts),
        )
    )
    assert n % 4 == 0
    shares = [int(c) / int(counts.sum()) for c in counts]
    total = 0.0
    for share in shares:
        total += share
    scale = (2**24 - len(shares)) / total
    starts, below = [], 0.0
    for index, share in enumerate(shares):
        starts.append(int(below * scale) + index)
        below += share
    starts.append(2**24)
    state = words.pop()
    if words:
        state = state << 32 | words.pop()
    decoded = []
    for _ in values:
        quantile = state & 0xFFFFFF
        symbol = bisect.bisect_right(starts, quantile) - 1
        width = starts[symbol + 1] - starts[symbol]
        state = width * (state >> 24) + quantile - starts[symbol]
        if state < 2**32 and words:
            state = state << 32 | words.pop()
        decoded.append(symbol + low)
    assert decoded == values.tolist()
    assert words == []


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


def rewritten_head(coded: bytes, head: bytes) -> bytes:
    size = struct.unpack_from("<Q", coded, 16)[0]
    packed = zstandard.ZstdCompressor().compress(head)
    old = struct.unpack_from("<Q", coded, 64)[0]
    sizes = struct.pack("<QQ", len(head), len(packed))
    fixed = coded[:16] + struct.pack("<Q", size) + coded[24:56] + sizes
    return resealed(fixed + packed + coded[FIXED_BYTES + old :])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_hostile_heads_never_crash(small: bytes, data: st.DataObject) -> None:
    packed = struct.unpack_from("<Q", small, 64)[0]
    plain = zstandard.ZstdDecompressor().decompress(small[FIXED_BYTES : FIXED_BYTES + packed])
    head = bytearray(plain)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(300, len(head) - 1)))
        head[place] = data.draw(st.integers(0, 255))
    if bytes(head) == plain:
        return
    with pytest.raises(CheckpointInvalid):
        decode(rewritten_head(small, bytes(head)), max_bytes=1 << 20)


def test_declared_sizes_are_checked_before_memory_is_taken(small: bytes) -> None:
    huge = bytearray(small)
    struct.pack_into("<Q", huge, 16, 2**40)
    with pytest.raises(CheckpointInvalid, match="at most"):
        decode(resealed(bytes(huge)))
    struct.pack_into("<Q", huge, 16, 2**30)
    struct.pack_into("<Q", huge, 56, 2**33)
    with pytest.raises(CheckpointInvalid, match=r"declares"):
        decode(resealed(bytes(huge)))


def test_limit_of_the_caller_holds(small: bytes) -> None:
    size = struct.unpack_from("<Q", small, 16)[0]
    assert len(decode(small, max_bytes=size)) == size
    with pytest.raises(CheckpointInvalid, match="at most"):
        decode(small, max_bytes=size - 1)


def test_other_files_and_versions_are_refused(small: bytes) -> None:
    for data in (b"", MAGIC, b"PK\x03\x04" + bytes(100)):
        with pytest.raises(CheckpointInvalid, match=r"Not a \.ppz"):
            decode(data)
    newer = small[:8] + struct.pack("<I", 2) + small[12:]
    with pytest.raises(CheckpointInvalid, match="version is 2"):
        decode(newer)
