"""ONNX operators that become layers of `torch.nn`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from compression.models.onnx_network import Network
from compression.models.onnx_values import Activation, Array, Operator, Value

Handler = Callable[[Operator, Network], Value | Sequence[Value]]

# Opsets before 11 say "no bound" by the largest float32.
_NO_BOUND = 3.4e38


def _grid(op: Operator, index: int = 0) -> Activation:
    x = op.activation(index)
    if x.rank != 4:
        raise op.refuse(f"its input has {x.rank} axes; 4 (N, C, H, W) are read")
    return x


def _pads(
    op: Operator,
    x: Activation,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int, int]:
    """Return left, right, top, bottom."""
    auto = op.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        top, left, bottom, right = op.ints("pads", (0, 0, 0, 0))
        return left, right, top, bottom
    if auto == "VALID":
        return 0, 0, 0, 0
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise op.refuse(f"auto_pad is {auto!r}")
    sides = []
    for axis in (1, 0):
        size = x.shapes[0][2 + axis]
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        total = max(0, (math.ceil(size / stride[axis]) - 1) * stride[axis] + reach - size)
        less, more = total // 2, total - total // 2
        sides += [less, more] if auto == "SAME_UPPER" else [more, less]
    return sides[0], sides[1], sides[2], sides[3]


def _convolution(op: Operator, net: Network) -> Value:
    x, weight = _grid(op), op.weight(1)
    if weight.ndim != 4:
        raise op.refuse(f"its weight has shape {list(weight.shape)}; 4 axes are read")
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = op.ints("strides", (1, 1)), op.ints("dilations", (1, 1))
    left, right, top, bottom = _pads(op, x, kernel, stride, dilation)
    even = left == right and top == bottom and min(left, top) >= 0
    if not even:
        pad = nn.ZeroPad2d((left, right, top, bottom))
        x = net.layer(op, pad, x, suffix="_pad")
    groups = op.whole("group", 1)
    tensors = _weights(op, weight)
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        (stride[0], stride[1]),
        (top, left) if even else 0,
        (dilation[0], dilation[1]),
        groups,
        bias="bias" in tensors,
        device="meta",
    )
    return net.layer(op, layer, x, tensors)


def _transposed(op: Operator, net: Network) -> Value:
    x, weight = _grid(op), op.weight(1)
    if weight.ndim != 4 or "output_shape" in op.attributes:
        raise op.refuse("a weight of 4 axes and no output_shape are read")
    if op.text("auto_pad", "NOTSET") != "NOTSET":
        raise op.refuse("auto_pad of a transposed convolution is not read")
    top, left, bottom, right = op.ints("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise op.refuse(f"pads {[top, left, bottom, right]} are not symmetric")
    groups = op.whole("group", 1)
    stride, dilation = op.ints("strides", (1, 1)), op.ints("dilations", (1, 1))
    extra = op.ints("output_padding", (0, 0))
    tensors = _weights(op, weight)
    layer = nn.ConvTranspose2d(
        weight.shape[0],
        weight.shape[1] * groups,
        (weight.shape[2], weight.shape[3]),
        (stride[0], stride[1]),
        (top, left),
        (extra[0], extra[1]),
        groups,
        "bias" in tensors,
        (dilation[0], dilation[1]),
        device="meta",
    )
    return net.layer(op, layer, x, tensors)


def _weights(op: Operator, weight: Array) -> dict[str, Array]:
    tensors = {"weight": weight}
    if op.has(2):
        bias = op.weight(2)
        if bias.ndim != 1:
            raise op.refuse(f"its bias has shape {list(bias.shape)}; one axis is expected")
        tensors["bias"] = bias
    return tensors


def linear(op: Operator, net: Network, weight: Array, bias: Array | None) -> Value:
    """Append a linear layer; `weight` is outputs x inputs."""
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    return net.layer(op, layer, op.activation(0), tensors)


def _gemm(op: Operator, net: Network) -> Value:
    if op.whole("transA", 0):
        raise op.refuse("transA moves the batch axis")
    weight = op.weight(1)
    if weight.ndim != 2:
        raise op.refuse(f"its weight has shape {list(weight.shape)}; two axes are expected")
    weight = weight if op.whole("transB", 0) else weight.T
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    weight = weight if alpha == 1.0 else weight * np.float32(alpha)
    bias = None
    if op.has(2):
        given = op.weight(2)
        if given.ndim > 2 or (given.ndim == 2 and given.shape[0] != 1):
            raise op.refuse(f"its C has shape {list(given.shape)}; one value per output is read")
        bias = np.broadcast_to(given.reshape(-1), (weight.shape[0],)) * np.float32(beta)
    return linear(op, net, weight, bias)


def _batch_norm(op: Operator, net: Network) -> Value:
    if op.whole("training_mode", 0) or len(op.outputs) > 1 or not op.whole("spatial", 1):
        raise op.refuse("only BatchNormalization in inference mode is read")
    x = op.activation(0)
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: op.weight(index) for index, name in enumerate(names, 1)}
    kind = nn.BatchNorm2d if x.rank == 4 else nn.BatchNorm1d
    # ONNX weighs the old statistics, PyTorch the new ones.
    layer = kind(
        tensors["weight"].size,
        eps=op.number("epsilon", 1e-5),
        momentum=1.0 - op.number("momentum", 0.9),
        device="meta",
    )
    _check_sizes(op, tensors, (layer.num_features,))
    return net.layer(op, layer, x, tensors)


def _instance_norm(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    if x.rank not in (3, 4):
        raise op.refuse(f"its input has {x.rank} axes; 3 or 4 are read")
    tensors = {"weight": op.weight(1), "bias": op.weight(2)}
    kind = nn.InstanceNorm2d if x.rank == 4 else nn.InstanceNorm1d
    width = tensors["weight"].size
    _check_sizes(op, tensors, (width,))
    if x.shapes[0][1] != width:
        raise op.refuse(f"it has {width} scales for {x.shapes[0][1]} channels")
    layer = kind(width, eps=op.number("epsilon", 1e-5), affine=True, device="meta")
    return net.layer(op, layer, x, tensors)


def _layer_norm(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    tensors = {"weight": op.weight(1)}
    if op.has(2):
        tensors["bias"] = op.weight(2)
    shape = x.shapes[0][op.axis(op.whole("axis", -1), x.rank) :]
    if len(shape) >= x.rank or len(op.outputs) > 1:
        raise op.refuse("it normalizes the batch axis, or gives out its statistics")
    _check_sizes(op, tensors, shape)
    layer = nn.LayerNorm(
        list(shape), eps=op.number("epsilon", 1e-5), bias="bias" in tensors, device="meta"
    )
    return net.layer(op, layer, x, tensors)


def _group_norm(op: Operator, net: Network) -> Value:
    if op.opset < 21:
        raise op.refuse("scales per group (before opset 21) are not read")
    tensors = {"weight": op.weight(1), "bias": op.weight(2)}
    width = tensors["weight"].size
    _check_sizes(op, tensors, (width,))
    groups = op.whole("num_groups", 1)
    layer = nn.GroupNorm(groups, width, eps=op.number("epsilon", 1e-5), device="meta")
    return net.layer(op, layer, op.activation(0), tensors)


def _check_sizes(op: Operator, tensors: Mapping[str, Array], shape: Sequence[int]) -> None:
    for name, array in tensors.items():
        if array.shape != tuple(shape):
            raise op.refuse(f"its {name} has shape {list(array.shape)}; {list(shape)} is expected")


def _prelu(op: Operator, net: Network) -> Value:
    x, slope = op.activation(0), op.weight(1)
    full = (1,) * (x.rank - slope.ndim) + slope.shape
    if len(full) != x.rank or slope.size not in (1, full[1]):
        raise op.refuse(f"its slope has shape {list(slope.shape)}; one per channel is read")
    layer = nn.PReLU(slope.size, device="meta")
    return net.layer(op, layer, x, {"weight": slope.reshape(-1)})


def bound(op: Operator, index: int, attribute: str) -> float | None:
    """Return a bound of a Clip, None where there is none."""
    if attribute in op.attributes:
        value = op.number(attribute, 0.0)
    elif op.has(index):
        value = float(op.weight(index).reshape(()))
    else:
        return None
    return None if abs(value) >= _NO_BOUND else value


def _clip(op: Operator, net: Network) -> Value:
    x, low, high = op.activation(0), bound(op, 1, "min"), bound(op, 2, "max")
    if low == 0.0 and high is None:
        return net.layer(op, nn.ReLU(), x)
    if low == 0.0 and high == 6.0:
        return net.layer(op, nn.ReLU6(), x)
    if low is not None and high is not None and low < high:
        return net.layer(op, nn.Hardtanh(low, high), x)
    if low is None and high is None:
        return x
    return net.call(torch.clamp, x, min=low, max=high)


def _hard_sigmoid(op: Operator, net: Network) -> Value:
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return net.layer(op, nn.Hardsigmoid(), op.activation(0))
    scaled = net.call(torch.mul, op.activation(0), alpha)
    return net.call(torch.clamp, net.call(torch.add, scaled, beta), min=0.0, max=1.0)


def _softmax(op: Operator, net: Network) -> Value:
    x = op.activation(0)
    axis = op.axis(op.whole("axis", -1 if op.opset >= 13 else 1), x.rank)
    if op.opset < 13 and axis != x.rank - 1:
        raise op.refuse("before opset 13, only the last axis is read")
    kind = nn.Softmax if op.kind == "Softmax" else nn.LogSoftmax
    return net.layer(op, kind(axis - x.rank if axis == x.rank - 1 else axis), x)


def _window(op: Operator) -> tuple[tuple[int, int], tuple[int, int]]:
    kernel, stride = op.ints("kernel_shape", (0, 0)), op.ints("strides", (1, 1))
    return (kernel[0], kernel[1]), (stride[0], stride[1])


def _max_pool(op: Operator, net: Network) -> Value:
    if len(op.outputs) > 1:
        raise op.refuse("it gives out indices")
    x = _grid(op)
    kernel, stride = _window(op)
    dilation = op.ints("dilations", (1, 1))
    left, right, top, bottom = _pads(op, x, kernel, stride, dilation)
    padding = (top, left)
    if (left, top) != (right, bottom) or 2 * left > kernel[1] or 2 * top > kernel[0]:
        pad = nn.ConstantPad2d((left, right, top, bottom), -math.inf)
        x, padding = net.layer(op, pad, x, suffix="_pad"), (0, 0)
    layer = nn.MaxPool2d(
        kernel,
        stride,
        padding,
        (dilation[0], dilation[1]),
        ceil_mode=bool(op.whole("ceil_mode", 0)),
    )
    return net.layer(op, layer, x)


def _average_pool(op: Operator, net: Network) -> Value:
    x = _grid(op)
    kernel, stride = _window(op)
    if op.ints("dilations", (1, 1)) != (1, 1):
        raise op.refuse("dilations other than 1 are not read")
    left, right, top, bottom = _pads(op, x, kernel, stride, (1, 1))
    padding, count = (top, left), bool(op.whole("count_include_pad", 0))
    ceil = bool(op.whole("ceil_mode", 0))
    if (left, top) != (right, bottom) or 2 * left > kernel[1] or 2 * top > kernel[0]:
        if not count or ceil:
            raise op.refuse("uneven padding is read with count_include_pad and no ceil_mode only")
        pad = nn.ZeroPad2d((left, right, top, bottom))
        x, padding = net.layer(op, pad, x, suffix="_pad"), (0, 0)
    return net.layer(op, nn.AvgPool2d(kernel, stride, padding, ceil, count), x)


def _simple(make: Callable[[Operator], nn.Module]) -> Handler:
    def handler(op: Operator, net: Network) -> Value:
        return net.layer(op, make(op), op.activation(0))

    return handler


def _global_pool(layer: Callable[[], nn.Module]) -> Handler:
    def handler(op: Operator, net: Network) -> Value:
        return net.layer(op, layer(), _grid(op))

    return handler


def _dropout(op: Operator, net: Network) -> Value:
    ratio = float(op.weight(1).reshape(())) if op.has(1) else op.number("ratio", 0.5)
    return net.layer(op, nn.Dropout(ratio), op.activation(0))


LAYERS: Mapping[str, Handler] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "PRelu": _prelu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool(lambda: nn.AdaptiveAvgPool2d(1)),
    "GlobalMaxPool": _global_pool(lambda: nn.AdaptiveMaxPool2d(1)),
    "Dropout": _dropout,
    "Relu": _simple(lambda op: nn.ReLU()),
    "LeakyRelu": _simple(lambda op: nn.LeakyReLU(op.number("alpha", 0.01))),
    "Sigmoid": _simple(lambda op: nn.Sigmoid()),
    "Tanh": _simple(lambda op: nn.Tanh()),
    "HardSwish": _simple(lambda op: nn.Hardswish()),
    "Gelu": _simple(lambda op: nn.GELU(op.text("approximate", "none"))),
    "Elu": _simple(lambda op: nn.ELU(op.number("alpha", 1.0))),
    "Softplus": _simple(lambda op: nn.Softplus()),
    "Mish": _simple(lambda op: nn.Mish()),
}
"""By operator: what makes its layers."""
