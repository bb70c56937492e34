"""Every codec of the download container: byte for byte, near the entropy, as documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compression.container import Section, decode, encode_onnx, read_sections, sections_of
from compression.container_codecs import (
    Cursor,
    IntegerReader,
    join_planes,
    pack_integers,
    split_planes,
)
from compression.container_fit import code_bytes, entropy_bytes, fit
from compression.container_layouts import divisions, float_layouts
from compression.container_symbols import (
    LEVELS_PER_OCTAVE,
    Axis,
    Coding,
    Form,
    SymbolReader,
    SymbolWriter,
    bell,
    level_weights,
    read_coding,
    slope,
)
from compression.container_values import Codec, Numbers
from compression.errors import CheckpointInvalid
from tests.compression_tests.ppz_reader import Reader

GOLDEN = Path(__file__).parents[1] / "golden"
FIXED_BYTES = 56
# The most that a container adds to a model that no codec can shorten.
CONSTANT = 160


def tensors_only(*tensors: NDArray[Any]) -> bytes:
    """Return a model that holds these tensors, named w0 and on, and does nothing with them."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    weights = [numpy_helper.from_array(t, f"w{i}") for i, t in enumerate(tensors)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [output])
    graph.initializer.extend(weights)
    return bytes(helper.make_model(graph).SerializeToString())


def codecs_of(onnx: bytes) -> list[Codec]:
    """Return the codec of each tensor by the documented table (int8 and float32 ones)."""
    found: list[Codec] = []
    coded = encode_onnx(onnx)
    reader = Reader(coded)
    assert reader.content() == onnx
    found += [Codec(codec) for codec in reader.codecs]
    return found


def floats(kind: str, seed: int) -> NDArray[np.float32]:
    """Return a tensor that one of the codecs is made for."""
    values: NDArray[np.float32] = _floats(kind, np.random.default_rng(seed))
    return values


def _floats(kind: str, rng: np.random.Generator) -> Any:
    normal = rng.standard_normal((24, 8, 3, 3)).astype(np.float32)
    flat = normal.reshape(24, -1)
    if kind == "palette":
        return np.quantile(normal, np.linspace(0, 1, 9)).astype(np.float32)[
            rng.integers(0, 9, normal.shape)
        ]
    if kind == "half palette":
        return np.array([-1.5, -0.25, 0.0, 0.75], np.float32)[rng.integers(0, 4, normal.shape)]
    if kind == "sparse":
        return np.where(np.abs(normal) > 1.6, normal, np.float32(0))
    if kind == "sparse halves":
        return np.where(np.abs(normal) > 1.6, normal, 0).astype(np.float16).astype(np.float32)
    if kind == "vectors":
        return (
            rng.standard_normal((12, 9))
            .astype(np.float32)[rng.integers(0, 12, (24, 8))]
            .reshape(24, 8, 3, 3)
        )
    if kind == "grid":
        scales = (np.abs(flat).max(1, keepdims=True) / 7).astype(np.float32)
        steps = np.rint(flat / scales).astype(np.int32)
        return (steps.astype(np.float32) * scales).reshape(normal.shape)
    if kind == "grid with outliers":
        scales = (np.abs(flat).max(1, keepdims=True) / 12).astype(np.float32)
        steps = np.rint(flat / scales).astype(np.int32)
        values = steps.astype(np.float32) * scales
        return np.where(np.abs(flat) > 2.5, flat, values).reshape(normal.shape)
    if kind == "constant":
        return np.full((400,), 0.1, np.float32)
    assert kind == "odd bits"
    odd = np.array([0x7FC00001, 0x80000000, 0, 0xFF800000, 1], np.uint32).view(np.float32)
    return odd[rng.integers(0, 5, 900)]


EXPECTED = {
    "palette": Codec.PALETTE,
    "half palette": Codec.PALETTE,
    "sparse": Codec.PALETTE,
    "sparse halves": Codec.PALETTE,
    "vectors": Codec.PALETTE,
    "grid": Codec.GRID,
    "grid with outliers": Codec.GRID,
    "constant": Codec.PALETTE,
    "odd bits": Codec.PALETTE,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_structure_is_found_and_comes_back(kind: str) -> None:
    onnx = tensors_only(floats(kind, 3))
    assert codecs_of(onnx) == [EXPECTED[kind]]
    coded = encode_onnx(onnx)
    assert decode(coded) == onnx
    assert coded == encode_onnx(onnx)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(EXPECTED)), st.integers(0, 99)), max_size=4))
def test_any_mix_of_structures_comes_back(parts: list[tuple[str, int]]) -> None:
    onnx = tensors_only(*(floats(kind, seed) for kind, seed in parts))
    coded = encode_onnx(onnx)
    assert decode(coded) == onnx
    assert len(coded) <= len(onnx) + CONSTANT


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int8", "uint8", "int32", "float32", "float64", "float16"]),
    st.binary(max_size=4000),
    st.integers(1, 40),
    st.booleans(),
)
def test_any_bytes_come_back_and_hardly_grow(
    kind: str, data: bytes, rows: int, repeated: bool
) -> None:
    whole = data * (5 if repeated else 1)
    width = np.dtype(kind).itemsize
    count = len(whole) // width // rows * rows
    tensor = np.frombuffer(whole[: count * width], kind).reshape(rows, -1)
    onnx = tensors_only(tensor)
    coded = encode_onnx(onnx)
    assert decode(coded) == onnx
    assert len(coded) <= len(onnx) + CONSTANT


def test_incompressible_numbers_do_not_grow() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint64).astype(np.uint32)
    onnx = tensors_only(bits.view(np.float32), bits.view(np.int8))
    assert len(encode_onnx(onnx)) <= len(onnx) + CONSTANT


def test_sizes_are_near_the_entropy() -> None:
    """On one large tensor: symbols, histogram and table within 1 % of the order-0 entropy."""
    rng = np.random.default_rng(1)
    indices = rng.choice(17, 200_000, p=np.r_[0.8, np.full(16, 0.0125)])
    table = np.sort(rng.standard_normal(17)).astype(np.float16).astype(np.float32)
    counts = np.bincount(indices)
    entropy = float((counts * np.log2(counts.sum() / counts)).sum() / 8)
    coded = encode_onnx(tensors_only(table[indices].reshape(200, -1)))
    assert len(coded) - 200 <= 1.01 * (entropy + 34)
    int8 = np.rint(rng.laplace(0, 15, 200_000)).clip(-127, 127).astype(np.int8)
    counts = np.unique(int8, return_counts=True)[1]
    entropy = float((counts * np.log2(counts.sum() / counts)).sum() / 8)
    assert len(encode_onnx(tensors_only(int8.reshape(200, -1)))) - 200 <= 1.01 * entropy


def test_rows_of_different_density_are_coded_apart() -> None:
    rng = np.random.default_rng(2)
    density = np.repeat([0.02, 0.6], 32)[:, None]
    kept = rng.random((64, 600)) < density
    values = np.where(
        kept, np.array([-1, 1], np.float32)[rng.integers(0, 2, kept.shape)], np.float32(0)
    )
    sizes = [len(encode_onnx(tensors_only(v))) for v in (values, rng.permutation(values.ravel()))]
    assert sizes[0] < 0.85 * sizes[1]


def test_version_1_is_still_read() -> None:
    content = decode((GOLDEN / "version1.ppz").read_bytes())
    assert len(content) == 5123
    assert decode(encode_onnx(content)) == content


def test_levels_slopes_and_bells_are_what_they_say() -> None:
    levels = np.array([[0, 1, 2, 9, 17]])
    assert level_weights(levels, 8)[0, 0] == 0
    for form, r in LEVELS_PER_OCTAVE.items():
        weights = level_weights(levels, r)[0, 1:] / 2**16
        assert weights == pytest.approx(2.0 ** ((levels[0, 1:] - 1) / r), rel=1e-5), form
    assert slope(np.array([0, 1, 4, 7, 79])).tolist() == [0, 5, 8, 14, 7 << 19]
    # a = 2^16 / 2^19 octaves is index 56; 8 symbols away the weight is 1 octave lower.
    weights = bell(np.array([[56, 0, 30], [0, 56, 30], [56, 56, 2]]), 41, 20) / 2.0**46
    assert weights[0] == pytest.approx(2.0 ** -(np.abs(np.arange(41) - 20) / 8), rel=1e-5)
    assert weights[1, 28] == pytest.approx(2.0**-8, rel=1e-5)
    assert weights[2, 0] == pytest.approx(2.0**-2, rel=1e-5)


def test_predicted_size_is_the_coded_one() -> None:
    rng = np.random.default_rng(3)
    symbols = np.rint(rng.normal(40, 9, 50_000)).clip(0, 80).astype(np.int32)
    counts = np.bincount(symbols, minlength=81)[None]
    coding, size = fit(symbols, 81, (), 40)
    writer = SymbolWriter()
    writer.add(symbols, coding)
    assert len(writer.words()) == pytest.approx(code_bytes(counts, coding.weights()), abs=8)
    assert size >= code_bytes(counts, coding.weights())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(Form)),
    st.integers(1, 30),
    st.integers(0, 2),
    st.integers(1, 400),
    st.integers(0, 2**32 - 1),
)
def test_symbols_come_back_under_any_coding(
    form: Form, alphabet: int, axes: int, blocks: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    count = 240 * blocks
    symbols = rng.integers(0, alphabet, count).astype(np.int32)
    shapes = [(blocks * 12, 20), (4, 5)][:axes]
    divided = tuple(Axis(i, rng.integers(0, 3, n).astype(np.uint8)) for i, n in shapes)
    histograms = len(np.unique(sum(np.resize(np.repeat(a.bins, a.inner), count) for a in divided)))
    columns = 3 if form is Form.BELL else alphabet
    parameters = rng.integers(1, 8, (histograms, columns))
    coding = Coding(alphabet, divided, form, parameters, alphabet // 2)
    if alphabet < 2:
        coding = fit(symbols, alphabet, (), 0)[0]
    elif histograms > 1 and histograms * alphabet > count:
        return
    writer = SymbolWriter()
    writer.add(symbols, coding)
    table, steps = coding.write()
    reader, cursor = IntegerReader(table), Cursor(steps, "STEPS")
    found, classes = read_coding(reader, cursor, alphabet, count)
    cursor.finish()
    assert reader.rest() == b""
    stream = SymbolReader(writer.words())
    assert np.concatenate(list(stream.read(found, classes, count))).tolist() == symbols.tolist()
    stream.finish()


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600), st.sampled_from([2, 4]))
def test_planes_are_lossless(data: bytes, width: int) -> None:
    padded = data + bytes(-len(data) % width)
    assert join_planes(split_planes(padded, width), width) == padded


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_integers_round_trip(values: list[int]) -> None:
    reader = IntegerReader(pack_integers(values) + b"tail")
    assert [reader.read(2**63) for _ in values] == values
    assert reader.rest() == b"tail"


def test_halves_are_used_only_where_nothing_is_lost() -> None:
    assert Numbers(np.array([0.5, -0.0, np.inf], np.float32).view(np.uint32)).narrow() is not None
    for value in (0.1, 1e9, 1e-9):
        assert Numbers(np.array([value], np.float32).view(np.uint32)).narrow() is None


def test_axes_are_those_of_output_and_input_channels() -> None:
    assert divisions((16, 8, 3, 3)) == ((72, 16), (9, 8))
    assert divisions((16, 8, 3, 3), 9) == ((8, 16), (1, 8))
    assert divisions((16, 8, 3, 3), 8) == ((9, 16), (1, 9))
    assert divisions((16, 8, 3, 3), 7) == ()
    assert divisions((10,)) == ()


def test_ordinary_floats_are_not_searched_long() -> None:
    values = np.random.default_rng(0).standard_normal((64, 576)).astype(np.float32)
    assert list(float_layouts(values.view(np.uint32).ravel(), values.shape)) == []


def test_entropy_of_bytes() -> None:
    assert entropy_bytes(b"") == 0
    assert entropy_bytes(bytes(100)) == 0
    assert entropy_bytes(bytes(range(256)) * 3) == pytest.approx(768)


def test_a_reader_written_from_the_documentation_reads_every_codec() -> None:
    rng = np.random.default_rng(4)
    int8 = np.rint(rng.laplace(0, 11, (40, 60)) * np.linspace(0.2, 2, 60)).clip(-100, 90)
    parts = [floats(kind, 5) for kind in EXPECTED]
    onnx = tensors_only(
        *parts,
        int8.astype(np.int8),
        rng.standard_normal(300, dtype=np.float32),
        rng.integers(0, 255, 3000).astype(np.uint8),
        np.tile(rng.integers(0, 255, 300), 12),
    )
    assert set(codecs_of(onnx)) == set(Codec)


def test_sections_are_those_of_the_file() -> None:
    onnx = tensors_only(floats("palette", 0), floats("grid", 1))
    coded = encode_onnx(onnx)
    assert read_sections(coded[FIXED_BYTES:], len(onnx)) == sections_of(onnx)
    assert set(sections_of(onnx)) == set(Section)


def test_wrong_codings_are_refused() -> None:
    ok = pack_integers([0, Form.LEVELS_1])
    cases: list[tuple[bytes, bytes, str]] = [
        (pack_integers([3]), b"", "at most 2"),
        (pack_integers([1, 0, 4]), b"", "axis"),
        (pack_integers([1, 3, 5]), bytes(5), "axis"),
        (pack_integers([1, 1, 8, Form.LEVELS_1]), bytes([64] * 8), "bin is 64"),
        (pack_integers([1, 1, 8, Form.LEVELS_1]), bytes(range(8)) + bytes(80), "stand for"),
        (pack_integers([0, 6]), b"", "at most 5"),
        (ok, bytes(9), "needed"),
        (ok, bytes(10), "Levels"),
        (ok, bytes([32] * 10), "Levels"),
        (pack_integers([0, Form.COUNTS, *[0] * 10]), b"", "counts none"),
        (pack_integers([0, Form.COUNTS, *[2**31 + 1] * 10]), b"", "at most"),
        (pack_integers([0, Form.BELL, 10]), bytes(3), "at most 9"),
        (pack_integers([0, Form.BELL, 5]), bytes([80, 0, 0]), "slopes"),
        (pack_integers([0, Form.BELL, 5]), bytes([0, 0, 31]), "slopes"),
    ]
    for table, steps, message in cases:
        with pytest.raises(CheckpointInvalid, match=message):
            read_coding(IntegerReader(table), Cursor(steps, "STEPS"), 10, 16)
