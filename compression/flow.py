"""Following channels through a forward pass, operator by operator.

The model is run once on one input. Beside every activation goes a tensor of labels of its shape
(`compression.labels`): a convolution or linear layer gives its outputs fresh labels and notes the
labels of its inputs; reshapes, slices, concatenations and the like are done to the labels as they
are done to the values, so a channel shuffle or a window partition needs no rule of its own;
additions and products unite the labels that meet. What is not understood is flagged, never
guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from compression.attention import Attention, attention_of
from compression.coupling import Side
from compression.labels import Labels, varies
from compression.ownership import Owner, Ownership
from compression.surgery import is_depthwise

CHANNEL_PADDING = "its channels pass through padding whose alignment pruning would break"

_SAME = frozenset({"hardswish", "_to_copy", "lift_fresh", "native_dropout", "_prelu_kernel"})
_SOFTMAX = frozenset({"_softmax", "_log_softmax", "_safe_softmax"})
_STRUCTURAL = frozenset(
    {"_unsafe_view", "_reshape_alias", "cat", "stack", "roll", "flip", "repeat", "index"}
    | {"index_select", "clone", "pixel_shuffle", "pixel_unshuffle"}
)
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "linalg_vector_norm"})
_WINDOWED = ("avg_pool2d", "max_pool2d", "upsample_", "reflection_pad2d", "replication_pad2d")


class ChannelFlow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Labels the activations of a model while it runs.

    Attributes:
        labels: What was united and flagged.
        taps: By layer and side, for every use: one label per position of the layer's own tensor;
            for `in` along the weight's second axis.
        attentions: By path, the attention layers that were called; their inside is not followed.
        outputs: Labels of the model's outputs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = Labels()
        self.taps: dict[tuple[str, Side], list[Tensor]] = {}
        self.attentions: dict[str, Attention] = {}
        self.outputs: list[Tensor] = []
        self._model = model
        self._modules = dict(model.named_modules())
        self._known: Any = WeakIdKeyDictionary()
        self._produced: dict[str, Tensor] = {}
        self._stack: list[str] = []
        self._inside: str | None = None
        self._ownership = Ownership(model)

    def run(self, x: Tensor) -> None:
        """Run the model on `x` and follow its channels; may be called again, in another mode."""
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
        fast = torch.backends.mha.get_fastpath_enabled()
        # The fast path of transformer layers is one operator that nothing can be seen in.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), self:
                outputs = self._model(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            self._inside = None
            self._stack.clear()
            for handle in handles:
                handle.remove()
        found = (self._known.get(t) for t in tree_leaves(outputs) if isinstance(t, Tensor))
        self.outputs += [labels for labels in found if labels is not None]

    def _enter(self, name: str) -> Callable[..., None]:
        attention = attention_of(name, self._modules[name])

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._stack.append(name)
            if attention is not None and self._inside is None:
                self._inside = name
                self.attentions[name] = attention

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._stack.pop()
            if self._inside == name:
                self._inside = None
                self._close_attention(self.attentions[name], (args, kwargs), output)

        return hook

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator and label what it returns."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._inside is None:
            self._follow(func, args, kwargs, out)
        return out

    def _follow(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        name = func._schema.name.partition("::")[2]
        name = name if name.startswith("__") else name.removesuffix("_")
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name == "convolution":
            self._convolve(args[0], args[1], transposed=args[6], groups=args[8], out=out)
        elif name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = (args[0], args[1]) if name in ("mm", "bmm") else (args[1], args[2])
            self._multiply(left, right, out)
        elif not any(t in self._known for t in inputs):
            self._ownership.inherit(inputs, tree_leaves(out))
        elif "batch_norm" in name:
            self._normalize_channels(args, out)
        elif name in ("native_layer_norm", "native_group_norm"):
            self._normalize_jointly(name, args, out)
        elif name in _SAME or name in _SOFTMAX:
            if name == "_prelu_kernel":
                self._pass_through(args[0], args[1])
            self._set(out, self._known.get(args[0]))
        elif name == "constant_pad_nd":
            self._pad(args[0], args[1], out)
        elif func.is_view or name in _STRUCTURAL:
            self._move(func, args, kwargs, out)
        elif torch.Tag.pointwise in func.tags:
            self._meet(inputs, out)
        elif any(part in name for part in _WINDOWED):
            self._set(out, self.labels.unite_all(self._known[args[0]], (-2, -1)))
        elif torch.Tag.reduction in func.tags or name in _REDUCTIONS:
            self._reduce(func, name, args, kwargs, out)
        elif name.startswith("_scaled_dot_product"):
            self._attend(args, out)
        else:
            self._give_up(name, inputs, out)

    # Bookkeeping.

    def _get(self, tensor: Tensor) -> Tensor:
        labels: Tensor | None = self._known.get(tensor)
        return _nothing(tensor) if labels is None else labels

    def _set(self, out: Any, labels: Tensor | None) -> None:
        """Label the first tensor of an operator's outputs; `labels` are expanded to its shape."""
        first = out if isinstance(out, Tensor) else out[0]
        if labels is not None:
            self._known[first] = labels.expand(first.shape)

    def _tap(self, layer: str, side: Side, labels: Tensor) -> None:
        self.taps.setdefault((layer, side), []).append(labels)

    def _owner(self, tensor: Any) -> Owner | None:
        return self._ownership.of(tensor, self._stack[-1] if self._stack else "")

    def _produce(self, layer: str, width: int) -> Tensor:
        """Return the labels of a layer's outputs, the same ones at every use."""
        if layer not in self._produced:
            self._produced[layer] = self.labels.fresh(width)
            self._tap(layer, "out", self._produced[layer])
        return self._produced[layer]

    def _give_up(self, name: str, inputs: list[Tensor], out: Any) -> None:
        if any(isinstance(t, Tensor) for t in tree_leaves(out)):
            reason = f"its channels pass through {name!r}, which the tracer does not know"
            for tensor in inputs:
                self.labels.flag(self._get(tensor), reason)

    # Layers.

    def _convolve(
        self, x: Tensor, weight: Tensor, *, transposed: bool, groups: int, out: Tensor
    ) -> None:
        owner = self._owner(weight)
        layer = owner[0] if owner else self._stack[-1] if self._stack else ""
        module = self._modules[layer]
        incoming = self._per_position(x, 1)
        if not isinstance(module, _ConvNd) or (owner and owner[1] != "weight"):
            self.labels.flag(incoming, "its channels enter a convolution that is no layer")
            return
        fresh: Tensor
        if is_depthwise(module):
            self._tap(layer, "out", incoming)
            fresh = incoming
        else:
            fresh = self._produce(layer, out.shape[1])
            if groups > 1:
                # Groups stay; as many positions leave each of them, the same ones.
                incoming = self.labels.unite_all(incoming.view(groups, -1), (0,)).view(-1)
                self.labels.unite_all(fresh.view(groups, -1), (0,))
            self._tap(layer, "in", incoming)
        reason = self._unfit(module, layer, owner, transposed)
        if reason is not None:
            self.labels.flag(incoming, reason)
            self.labels.flag(fresh, reason)
        self._set(out, fresh.view(1, -1, *[1] * (out.dim() - 2)))

    def _unfit(
        self, module: nn.Module, layer: str, owner: Any, transposed: bool = False
    ) -> str | None:
        if owner is None or "weight" not in module._parameters:
            return f"the weights of {layer!r} are re-parametrised"
        return f"{layer!r} is a transposed convolution" if transposed else None

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        owner = self._owner(right)
        here = self._stack[-1] if self._stack else ""
        if owner is None and isinstance(self._modules[here], nn.Linear):
            owner = (here, "")
        module = self._modules[owner[0]] if owner and right not in self._known else None
        if owner is None or module is None:
            self._contract(left, right, out)
            return
        layer = owner[0]
        incoming = self._per_position(left, -1)
        shape = (getattr(module, "in_features", -1), getattr(module, "out_features", -1))
        if not isinstance(module, nn.Linear) or tuple(right.shape[-2:]) != shape:
            self.labels.flag(incoming, f"its channels meet the bare parameter {'.'.join(owner)!r}")
            return
        self._tap(layer, "in", incoming)
        fresh = self._produce(layer, out.shape[-1])
        reason = self._unfit(module, layer, owner if owner[1] == "weight" else None)
        if reason is not None:
            self.labels.flag(incoming, reason)
            self.labels.flag(fresh, reason)
        self._set(out, fresh)

    def _normalize_channels(self, args: tuple[Any, ...], out: Any) -> None:
        here = self._stack[-1]
        labels = self._per_position(args[0], 1)
        owners = [(here, "")] if isinstance(self._modules[here], _NormBase) else []
        owners += [owner for t in args[1:5] if (owner := self._owner(t))]
        if owners and isinstance(self._modules[owners[0][0]], _NormBase):
            self._tap(owners[0][0], "out", labels)
        elif owners:
            self.labels.flag(labels, f"its channels meet {'.'.join(owners[0])!r}")
        self._set(out, self._known.get(args[0]))

    def _normalize_jointly(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        labels = self._get(args[0])
        dims = range(-len(args[1]), 0) if name == "native_layer_norm" else (1,)
        if any(varies(labels, dim) for dim in dims):
            kind = "LayerNorm" if name == "native_layer_norm" else "GroupNorm"
            owner = self._owner(args[2]) if name == "native_layer_norm" else self._owner(args[1])
            layer = owner[0] if owner else self._stack[-1]
            kind = type(self._modules[layer]).__name__ if owner else kind
            self.labels.flag(labels, f"{kind} {layer!r} mixes its channels into one statistic")
            if owner:
                self._touch(layer, labels)
        self._set(out, labels)

    def _touch(self, layer: str, labels: Tensor) -> None:
        """Make a layer that cannot be thinned a member of the coupling."""
        self._tap(layer, "out", labels.amax(tuple(range(labels.dim() - 1))))

    def _pass_through(self, x: Tensor, weight: Tensor) -> None:
        owner = self._owner(weight)
        if owner and weight.numel() > 1:
            self._tap(owner[0], "out", self._per_position(x, 1))

    def _close_attention(self, attention: Attention, inputs: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        fresh = self._produce(attention.projection, first.shape[-1])
        reason = f"its channels enter or leave {attention.name!r}, which can only lose heads"
        self.labels.flag(fresh, reason)
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor) and tensor in self._known:
                self.labels.flag(self._known[tensor], reason)
                self._tap(attention.entrance, "in", self._per_position(tensor, -1))
        self._set(first, fresh)

    # Functions.

    def _per_position(self, tensor: Tensor, dim: int) -> Tensor:
        """Return one label per position along `dim`, uniting what else differs."""
        labels = self._get(tensor)
        others = tuple(d for d in range(labels.dim()) if d != dim % labels.dim())
        return (
            self.labels.unite_all(labels, others)
            .expand([1 if d in others else labels.shape[d] for d in range(labels.dim())])
            .reshape(-1)
        )

    def _move(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        name = func._schema.name.partition("::")[2]
        if name in ("index", "index_select"):
            moved_args = (self._get(args[0]), *args[1:])
        else:
            moved_args = tree_map_only(Tensor, self._get, args)
        if name in ("view", "_unsafe_view", "_reshape_alias"):
            moved = moved_args[0].reshape(out.shape)
        else:
            kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
            moved = func(*moved_args, **kwargs)
        for tensor, labels in zip(tree_leaves(out), tree_leaves(moved), strict=True):
            self._known[tensor] = labels

    def _meet(self, inputs: list[Tensor], out: Any) -> None:
        """Unite what meets in an addition, a product or another element-wise function."""
        out = out if isinstance(out, Tensor) else out[0]
        met = [self._known[t].expand(out.shape) for t in inputs if t in self._known]
        result = met[0]
        for labels in met[1:]:
            self.labels.unite(result, labels)
            result = torch.where(result == 0, labels, result) if _gaps(result) else result
        for tensor in inputs:
            if tensor in self._known or tensor.numel() == 1:
                continue
            owner = self._owner(tensor)
            if owner and owner[1] == "bias" and owner[0] in self._produced:
                continue
            sizes = zip(range(-tensor.dim(), 0), tensor.shape, strict=True)
            if any(size > 1 and varies(result, dim) for dim, size in sizes):
                what = (
                    f"the bare parameter {_path(owner)!r}" if owner else "a tensor of fixed width"
                )
                self.labels.flag(result, f"its channels meet {what}")
        self._known[out] = result

    def _reduce(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        labels = self._known[args[0]]
        names = [argument.name for argument in func._schema.arguments]
        dims = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim")
        dims = range(labels.dim()) if dims is None or dims == [] else dims
        dims = tuple(d % labels.dim() for d in ([dims] if isinstance(dims, int) else dims))
        if any(varies(labels, dim) for dim in dims):
            self.labels.flag(labels, f"its channels are taken together by {name!r}")
        one = self.labels.unite_all(labels, dims)
        one = one.expand([1 if d in dims else size for d, size in enumerate(labels.shape)])
        for tensor in tree_leaves(out):
            self._known[tensor] = one.reshape(tensor.shape)

    def _contract(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """A product of two activations, as in attention: each matrix is one thing."""
        if left not in self._known and right not in self._known:
            return
        if left.dim() == 2:
            left, right = left[None], right[None]
        self._set(out, self._as_one(self._get(left), self._get(right))[..., None, None])

    def _as_one(self, *tensors: Tensor) -> Tensor:
        """Unite all of a matrix, and the matrices of the same place; one label for each."""
        whole = [self.labels.unite_all(t, (-2, -1))[..., 0, 0] for t in tensors]
        result = whole[0]
        for other in whole[1:]:
            self.labels.unite(result, other)
            result = torch.maximum(result, other)
        return result

    def _attend(self, args: tuple[Any, ...], out: Any) -> None:
        heads = self._as_one(*(self._get(t) for t in args[:3]))
        self._set(out, heads[..., None, None])

    def _pad(self, x: Tensor, pad: list[int], out: Tensor) -> None:
        labels = self._known[x]
        padded = torch.constant_pad_nd(labels, pad, 0)
        for pair in range(len(pad) // 2):
            dim = x.dim() - 1 - pair
            if any(pad[2 * pair : 2 * pair + 2]) and varies(labels, dim):
                fresh = self.labels.fresh(out.shape[dim]).view(-1, *[1] * (x.dim() - 1 - dim))
                padded = torch.where(padded == 0, fresh, padded)
                self.labels.flag(padded, CHANNEL_PADDING, merge=True)
        self._known[out] = padded


def _path(owner: Owner) -> str:
    return ".".join(part for part in owner if part)


def _nothing(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int32).expand(tensor.shape)


def _gaps(labels: Tensor) -> bool:
    return bool((labels == 0).any())
