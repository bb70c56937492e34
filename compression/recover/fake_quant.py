"""Quantization-aware training: the training sees the rounding that the deployed graph will have.

Reference:
    Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3, https://arxiv.org/abs/1712.05877: rounded
    forward pass, straight-through gradients, activation ranges as moving averages.
    Park & Yoo (2020), "StatAssist & GradBoost", section 3,
    https://arxiv.org/abs/2006.09679: a float warm-up fills BatchNorm statistics and the
    optimizer's momentum before anything is rounded.

Deviations:
    BatchNorm is not folded during the training. It does not have to be: folding multiplies the
    weights of an output channel by one number, and a grid with one scale per output channel
    moves along, so rounded-then-folded equals folded-then-rounded.
    Weights of fewer than 8 bits get the scale with the least squared error, searched anew now and
    then. Ranges found here are not exported: the deployed graph is calibrated as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from compression.errors import CompressionError
from compression.recover.hook import Hook

_LAYERS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d, functional.linear})
# What the deployed graph computes in integers beside the layers; see COMPUTE_OPS there.
_SUMS = frozenset(
    {
        torch.add,
        torch.mul,
        torch.cat,
        Tensor.add,
        Tensor.add_,
        Tensor.mul,
        Tensor.mul_,
        Tensor.__add__,
        Tensor.__iadd__,
        Tensor.__radd__,
        Tensor.__mul__,
        Tensor.__imul__,
        Tensor.__rmul__,
        functional.avg_pool2d,
        functional.adaptive_avg_pool2d,
    }
)
_EDGES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Weights move little in so many steps; the search costs as much as several roundings.
_SCALE_STEPS = 10


def round_weight(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return weights on the symmetric grid of one scale per output channel; gradient 1 inside.

    Args:
        weight: Output channels first.
        scales: One per output channel, > 0.
        bits: 2 to 8; the integers are in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
    """
    top = (1 << (bits - 1)) - 1
    zero = torch.zeros(len(scales), dtype=torch.int32)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scales, zero, 0, -top, top)
    return rounded


def weight_scales(weight: Tensor, bits: int) -> Tensor:
    """Return one scale per output channel: the largest weight's, or with few bits the best of 7.

    Args:
        weight: Output channels first.
        bits: 2 to 8.
    """
    rows = weight.detach().flatten(1).float()
    top = (1 << (bits - 1)) - 1
    full: Tensor = (rows.abs().amax(1) / top).clamp_min(1e-12)
    if bits == 8:
        return full
    edges = full * torch.tensor(_EDGES)[:, None]
    errors = torch.stack(
        [(round_weight(rows, scales, bits) - rows).square().sum(1) for scales in edges]
    )
    return edges.gather(0, errors.argmin(0)[None])[0]


class FakeQuant(Hook):
    """Rounds weights and activations in every forward pass of the model that is trained.

    Rounded are the weights of convolutions and linear layers, and what goes into them, into sums,
    products, concatenations and average pooling: the places of the quantize and dequantize nodes
    in the deployed graph. The weights themselves stay float: `finish` leaves the model as it was
    but for the training.

    Args:
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        layer_bits: Bits of the weights of single layers, by name, where they differ.
        keep_float: Layers that are not rounded.
        warm_up: Share of the steps before anything is rounded, in [0, 1); ranges are watched.
        momentum: Share of a new batch in the moving average of a range, in (0, 1].
    """

    def __init__(
        self,
        *,
        weight_bits: int = 8,
        activation_bits: int = 8,
        layer_bits: Mapping[str, int] | None = None,
        keep_float: Iterable[str] = (),
        warm_up: float = 0.1,
        momentum: float = 0.05,
    ) -> None:
        layer_bits = dict(layer_bits or {})
        for name, bits in (
            ("weight_bits", weight_bits),
            ("activation_bits", activation_bits),
            *(("layer_bits of " + layer, bits) for layer, bits in layer_bits.items()),
        ):
            if not 2 <= bits <= 8:
                raise CompressionError(f"FakeQuant: {name} is {bits}; 2..8 is allowed")
        if not 0.0 <= warm_up < 1.0 or not 0.0 < momentum <= 1.0:
            raise CompressionError(
                f"FakeQuant: warm_up is {warm_up} and momentum {momentum}; "
                "they must be in [0, 1) and (0, 1]"
            )
        self._weight_bits = weight_bits
        self._layer_bits = layer_bits
        self._keep_float = frozenset(keep_float)
        self._warm_up = warm_up
        self._mode = _Rounding(2**activation_bits - 1, momentum)
        self._handles: list[RemovableHandle] = []
        self._first_step = 0

    def start(self, model: nn.Module, total_steps: int) -> None:
        """Watch the model's forward passes; round from the end of the warm-up on.

        Raises:
            CompressionError: A name of `layer_bits` or `keep_float` is not a layer of the model.
        """
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        }
        unknown = sorted((self._keep_float | self._layer_bits.keys()) - layers.keys())
        if unknown:
            raise CompressionError(f"FakeQuant names {unknown}, which are not layers of the model")
        bits = {
            name: None
            if name in self._keep_float
            else self._layer_bits.get(name, self._weight_bits)
            for name in layers
        }
        self._first_step = round(self._warm_up * total_steps)
        self._mode.active = self._first_step == 0
        for name, module in layers.items():
            self._handles += self._mode.announce(module, name, bits[name])

        def enter(module: nn.Module, args: Any) -> None:
            self._mode.begin(module.training)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        self._handles.append(model.register_forward_pre_hook(enter))
        self._handles.append(model.register_forward_hook(leave, always_call=True))

    def after_step(self, model: nn.Module, step: int) -> None:
        """Begin to round after the warm-up."""
        self._mode.active = step + 1 >= self._first_step
        if (step + 1) % _SCALE_STEPS == 0:
            self._mode.forget_scales()

    def finish(self, model: nn.Module) -> None:
        """Leave the model alone again, its weights float."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state(self) -> Mapping[str, Tensor]:
        """Return ranges, scales and whether the warm-up is over."""
        return self._mode.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the ranges and scales of the interrupted training."""
        self._mode.load_state(state)


class _Rounding(TorchFunctionMode):
    """Rounds what enters the functions of a forward pass; places are known by their order."""

    def __init__(self, levels: int, momentum: float) -> None:
        super().__init__()
        self.active = False
        self._levels = levels
        self._momentum = momentum
        self._ranges: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._scales: dict[str, Tensor] = {}
        self._layer: tuple[str, int | None] | None = None
        self._uses: dict[str, int] = {}
        self._training = True
        self._busy = False

    def begin(self, training: bool) -> None:
        """Count places from the start of the forward pass."""
        self._training = training
        self._uses.clear()

    def announce(self, module: nn.Module, name: str, bits: int | None) -> list[RemovableHandle]:
        """Tell which layer a convolution or matrix product belongs to."""

        def before(module: nn.Module, args: Any) -> None:
            self._layer = (name, bits)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._layer = None

        return [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, always_call=True),
        ]

    def state(self) -> dict[str, Tensor]:
        """Return all that later passes depend on, by name; a place is `layer#use`."""
        ranges = {f"range.{n}#{use}": torch.stack(r) for (n, use), r in self._ranges.items()}
        scales = {f"scale.{name}": scale for name, scale in self._scales.items()}
        return {"active": torch.tensor(self.active), **ranges, **scales}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.active = bool(state["active"])
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind == "range":
                layer, _, use = name.rpartition("#")
                self._ranges[layer, int(use)] = (value[0].clone(), value[1].clone())
            elif kind == "scale":
                self._scales[name] = value.clone()

    def forget_scales(self) -> None:
        """Search the scales of few-bit weights again at their next use."""
        self._scales.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._busy or not (func in _LAYERS or func in _SUMS):
            return func(*args, **kwargs)
        self._busy = True
        try:
            args = self._layer_inputs(args) if func in _LAYERS else self._sum_inputs(args)
        finally:
            self._busy = False
        return func(*args, **kwargs)

    def _layer_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._layer is None:  # a function called with weights that no layer owns
            return args
        name, bits = self._layer
        if bits is None:
            return args
        x, weight, *rest = args
        x = self._activation((name, self._use(name)), x)
        if self.active:
            weight = self._weight(name, weight, bits)
        return (x, weight, *rest)

    def _sum_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # Numbers, dimensions and kernel sizes among the arguments pass unchanged.
        if args and isinstance(args[0], list | tuple):
            return ([self._activation(("", self._use("")), part) for part in args[0]], *args[1:])
        return tuple(self._activation(("", self._use("")), arg) for arg in args)

    def _use(self, name: str) -> int:
        """Count the uses of a layer, or of all functions without one, in this forward pass."""
        index = self._uses.get(name, 0)
        self._uses[name] = index + 1
        return index

    def _weight(self, name: str, weight: Tensor, bits: int) -> Tensor:
        if bits == 8:
            return round_weight(weight, weight_scales(weight, bits), bits)
        if name not in self._scales:
            self._scales[name] = weight_scales(weight, bits)
        return round_weight(weight, self._scales[name], bits)

    def _activation(self, place: tuple[str, int], x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
            return x
        if self._training or place not in self._ranges:
            self._watch(place, x.detach())
        if not self.active:
            return x
        low, high = self._ranges[place]
        scale = ((high - low) / self._levels).clamp_min(1e-12)
        zero = (-low / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, self._levels)

    def _watch(self, place: tuple[str, int], x: Tensor) -> None:
        """Follow the range, widened to hold zero: the grid must represent it exactly."""
        low, high = (bound.float() for bound in torch.aminmax(x))
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if place in self._ranges:
            old_low, old_high = self._ranges[place]
            low = torch.lerp(old_low, low, self._momentum)
            high = torch.lerp(old_high, high, self._momentum)
        self._ranges[place] = (low, high)
