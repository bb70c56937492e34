"""Operator by operator, an imported file computes what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.onnx_nodes import (
    CHANNELS,
    FLAT,
    SIDE,
    check_parity,
    f32,
    i64,
    network,
    node,
    random,
    with_constant_nodes,
)

CASES: dict[str, Callable[[], bytes]] = {
    "conv asymmetric": lambda: network(
        [node("Conv", "x w b", pads=[0, 1, 2, 1], strides=[2, 1])],
        [("w", random(4, 3, 3, 3)), ("b", random(4))],
    ),
    "conv same": lambda: network(
        [node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2])], [("w", random(4, 3, 4, 3))]
    ),
    "conv depthwise dilated": lambda: network(
        [node("Conv", "x w", group=3, dilations=[2, 2], pads=[2] * 4)], [("w", random(6, 1, 3, 3))]
    ),
    "transposed": lambda: network(
        [node("ConvTranspose", "x w b", strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])],
        [("w", random(3, 5, 3, 3)), ("b", random(5))],
    ),
    "gemm": lambda: network(
        [node("Flatten", "x", "f"), node("Gemm", "f w c", alpha=0.5, beta=2.0, transB=1)],
        [("w", random(5, FLAT)), ("c", random(1, 5))],
    ),
    "gemm scalar": lambda: network(
        [node("Flatten", "x", "f"), node("Gemm", "f w c")],
        [("w", random(FLAT, 5)), ("c", f32([0.5]))],
    ),
    "matmul add": lambda: network(
        [node("MatMul", "x w", "m"), node("Add", "b m")], [("w", random(SIDE, 7)), ("b", random(7))]
    ),
    "norms": lambda: network(
        [
            node("BatchNormalization", "x s b m v", "n", epsilon=0.01, momentum=0.8),
            node("InstanceNormalization", "n s b"),
        ],
        [("s", random(3)), ("b", random(3) + 1), ("m", random(3) - 1), ("v", random(3) ** 2)],
    ),
    "layer norm": lambda: network(
        [node("LayerNormalization", "x s b", axis=-2)],
        [("s", random(SIDE, SIDE)), ("b", random(SIDE, SIDE))],
    ),
    "clip old": lambda: network([node("Clip", min=0.0, max=6.0)], opset=8),
    "clip one side": lambda: network([node("Clip", "x low")], [("low", f32(-0.3))]),
    "hard sigmoid": lambda: network([node("HardSigmoid", alpha=0.3, beta=0.4)]),
    "prelu": lambda: network([node("PRelu", "x s")], [("s", random(3, 1, 1))]),
    "erf": lambda: network([node("Erf", "x", "e"), node("Mul", "e x")]),
    "gelu": lambda: network([node("Gelu", approximate="tanh")], opset=20),
    "softmax": lambda: network([node("Softmax", axis=1)]),
    "max pool uneven": lambda: network(
        [node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])]
    ),
    "max pool ceil": lambda: network(
        [node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)]
    ),
    "average pool": lambda: network(
        [node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)]
    ),
    "average pool counted": lambda: network(
        [node("AveragePool", kernel_shape=[3, 2], pads=[0, 1, 1, 0], count_include_pad=1)]
    ),
    "global max": lambda: network([node("GlobalMaxPool")]),
    "reduce": lambda: network([node("ReduceMean", "x a", keepdims=0)], [("a", i64([-1, -2]))]),
    "reduce old": lambda: network([node("ReduceMax", axes=[1, 3], keepdims=1)], opset=13),
    "constants": lambda: network(
        [node("Sub", "two x", "s"), node("Div", "s d", "q"), node("Pow", "q p")],
        [("two", f32(2)), ("d", random(3, 1, 1)), ("p", f32([2]))],
    ),
    "extremes": lambda: network(
        [node("Max", "x c", "m"), node("Neg", "x", "k"), node("Min", "m k x")],
        [("c", f32(0.1))],
    ),
    "split": lambda: network(
        [node("Split", "x s", "a b", axis=2), node("Concat", "b a", axis=2)],
        [("s", i64([5, SIDE - 5]))],
    ),
    "slice": lambda: network(
        [node("Slice", "x s e a t")],
        [
            ("s", i64([1, -9])),
            ("e", i64([2**40, -1])),
            ("a", i64([1, 3])),
            ("t", i64([1, 2])),
        ],
    ),
    "slice old": lambda: network([node("Slice", axes=[2], starts=[1], ends=[-1])], opset=9),
    "gather": lambda: network(
        [node("Gather", "x i", "g", axis=1), node("Gather", "g j", axis=2)],
        [("i", i64([2, 0, -3])), ("j", i64(-1))],
    ),
    "moved": lambda: (
        network(
            [
                node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
                node("Unsqueeze", "t a", "u"),
                node("Squeeze", "u a", "s"),
                node("Reshape", "s r", "v"),
                node("Reshape", "v z"),
            ],
            [("a", i64([1])), ("r", i64([0, -1, 4, 12])), ("z", i64([0, -1, 48]))],
            opset=13,
        )
        if SIDE * SIDE * CHANNELS == 768
        else b""
    ),
    "pad": lambda: network(
        [node("Pad", "x p v", "q"), node("Pad", "q r", mode="reflect")],
        [
            ("p", i64([0, 1, 0, 2, 0, 2, 1, 0])),
            ("v", f32(0.5)),
            ("r", i64([0, 0, 1, 1, 0, 0, 2, 2])),
        ],
    ),
    "resize nearest": lambda: network(
        [
            node(
                "Resize",
                "x - s",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        ],
        [("s", f32([1, 1, 2, 3]))],
    ),
    "resize half pixel": lambda: network([node("Resize", "x - s")], [("s", f32([1, 1, 3, 2]))]),
    "resize bilinear": lambda: network(
        [node("Resize", "x - s", mode="linear")], [("s", f32([1, 1, 1.5, 0.5]))]
    ),
    "resize corners": lambda: network(
        [
            node("Shape", "x", "h", end=2),
            node("Concat", "h z", "s", axis=0),
            node(
                "Resize", "x - - s", mode="linear", coordinate_transformation_mode="align_corners"
            ),
        ],
        [("z", i64([20, 9]))],
    ),
    "flatten idiom": lambda: network(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n", axis=0),
            node("Unsqueeze", "n axis", "u"),
            node("Concat", "u rest", "t", axis=0),
            node("Reshape", "x t", "f"),
            node("Dropout", "f", "d"),
            node("Cast", "d", "c", to=1),
            node("Identity", "c"),
        ],
        [("zero", i64(0)), ("axis", i64([0])), ("rest", i64([-1]))],
    ),
    "class token": lambda: network(
        [
            node("Reshape", "x flat", "f"),
            node("Shape", "x", "n", end=1),
            node("Concat", "n ends", "e", axis=0),
            node("Expand", "token e", "t"),
            node("Concat", "t f", axis=1),
        ],
        [
            ("flat", i64([0, CHANNELS, -1])),
            ("ends", i64([1, SIDE * SIDE])),
            ("token", random(1, 1, SIDE * SIDE)),
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_operators(name: str) -> None:
    data = CASES[name]()
    check_parity(data)
    check_parity(with_constant_nodes(data))
