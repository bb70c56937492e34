"""Files that are refused, and what is read of a file before it is loaded."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from torch import nn

from compression.artifact import Digest, ModelArtifact
from compression.errors import ModelRefused
from compression.export import export_onnx, parity
from compression.models.formats import check_weights
from compression.models.onnx_header import declared_shape, read_onnx_header
from compression.models.onnx_import import import_onnx
from compression.models.registry import load_model
from tests.builders import SHAPE, MobileNet, seeded
from tests.onnx_nodes import (
    TOLERANCE,
    check_parity,
    i64,
    network,
    node,
    noise,
    random,
)


def relu(**changes: Any) -> bytes:
    return network([node("Relu")], **changes)


def edited(change: Callable[[ModelProto], Any]) -> bytes:
    model = onnx.load_model_from_string(network([node("Conv", "x w")], [("w", random(2, 3, 1, 1))]))
    change(model)
    return bytes(model.SerializeToString())


def outside(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def huge(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def foreign() -> bytes:
    model = onnx.load_model_from_string(relu())
    model.graph.node[0].domain = "me"
    model.opset_import.append(helper.make_opsetid("me", 1))
    return bytes(model.SerializeToString())


def bomb() -> bytes:
    nodes = [node("ConstantOfShape", "s", "c"), node("Add", "x c")]
    return network(nodes, [("s", i64([1 << 20, 1 << 20]))])


def grown() -> bytes:
    nodes = [node("Pad", "x p")]
    return network(nodes, [("p", i64([0, 0, 0, 0, 0, 0, 1 << 20, 1 << 20]))])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "not valid"),
        (lambda: b"\x08\x07:\xff\xff", "Not an ONNX model"),
        (lambda: relu()[:-9], "Not an ONNX model|not valid"),
        (lambda: edited(outside), "'w' lies outside the file"),
        (lambda: edited(huge), r"'w' of shape \[1099511627776|not valid"),
        (lambda: network([node("Relu", "q")]), "not valid"),
        (
            lambda: network([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b")]),
            "not valid",
        ),
        (bomb, r"ConstantOfShape, opset 18\).*out of proportion"),
        (grown, r"Pad, opset 18\).*at most"),
        (lambda: network([node("NonZero")]), r"'n_NonZero' \(NonZero, opset 18\)"),
        (foreign, "its operator set is 'me'"),
        (
            lambda: network([node("Add", "x c")], [("c", np.array([1.0, 2.0]))]),
            "'c' is DOUBLE; float32 and int64 are read",
        ),
        (lambda: relu(kind=TensorProto.FLOAT16), "'x' of the ONNX network is not a float32"),
        (lambda: relu(shape=("n", 3)), "2 axes"),
        (lambda: relu(shape=(1, 3, 10**9, 10**9)), r"input_shape is \[3, 16, 16\]"),
        (lambda: network([node("Cast", to=11)]), "casts to data type 11"),
        (lambda: network([node("Transpose", perm=[1, 0, 2, 3])]), "batch size is not free"),
        (lambda: network([node("ReduceMean")]), "reduces the batch axis"),
        (lambda: relu(opset=5), r"opset \[5\]"),
    ],
)
def test_refused(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        import_onnx(make(), SHAPE)


def test_every_truncation_is_refused() -> None:
    data = network([node("Conv", "x w")], [("w", random(2, 3, 1, 1))])
    for length in range(len(data)):
        with pytest.raises(ModelRefused):
            import_onnx(data[:length], SHAPE)
        with pytest.raises(ModelRefused):
            check_weights(data[:length], "onnx")


def test_header() -> None:
    data = export_onnx(seeded(MobileNet), SHAPE)
    header = read_onnx_header(io.BytesIO(data), len(data))
    assert declared_shape(header) == SHAPE
    assert header.input_shape[0] is None
    assert header.nodes == len(onnx.load_model_from_string(data).graph.node)
    check_weights(data, "onnx")
    free = relu(shape=("n", 3, "h", "w"))
    with pytest.raises(ModelRefused, match="'free', 3, 'free', 'free'"):
        declared_shape(read_onnx_header(io.BytesIO(free), len(free)))
    with pytest.raises(ModelRefused, match="another file"):
        check_weights(edited(outside), "onnx")
    with pytest.raises(ModelRefused, match=r"zip|torch\.save|known format|was declared 'onnx'"):
        check_weights(b"PK\x03\x04" + bytes(40), "onnx")


def test_names_are_readable_and_harmless() -> None:
    nodes = [
        node("Conv", "x a.weight", "1"),
        node("Conv", "1 a.b.weight", "2"),
        node("Conv", "2 forward.weight", "3"),
        node("Conv", "3 class/import.weight", "4"),
        node("Conv", "4 k", "y"),
    ]
    nodes[-1].name = "__import__('os').system('echo')"
    names = ("a.weight", "a.b.weight", "forward.weight", "class/import.weight", "k")
    found = check_parity(network(nodes, [(name, random(3, 3, 1, 1)) for name in names]))
    layers = [n for n, m in found.named_modules() if isinstance(m, nn.Conv2d)]
    assert layers[:4] == ["a", "a_b", "forward_", "class_.import_"]
    assert all(part.isidentifier() for name in layers for part in name.split("."))


def test_loaded_as_a_model() -> None:
    data = export_onnx(seeded(MobileNet), SHAPE)
    artifact = ModelArtifact(
        weights=Digest("0" * 64),
        format="onnx",
        architecture="onnx",
        input_shape=SHAPE,
        num_classes=10,
    )
    assert parity(data, load_model(artifact, data), noise(3)) <= TOLERANCE
    for changes, words in (
        ({"architecture": "cifar_resnet20"}, "in both or in neither"),
        ({"format": "safetensors"}, "in both or in neither"),
        ({"options": {"depth": 3}}, "takes none"),
        ({"num_classes": 9}, "10 wide; num_classes is 9"),
        ({"input_shape": (1, 8, 8)}, r"input_shape is \[1, 8, 8\]"),
    ):
        with pytest.raises(ModelRefused, match=words):
            load_model(dataclasses.replace(artifact, **changes), data)
    with pytest.raises(ModelRefused, match="needs a weights file"):
        load_model(artifact, None)
