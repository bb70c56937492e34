"""The certificate: what came out of applying a plan is what the plan says, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compression.apply import Applied
from compression.counting import count_macs, count_params
from compression.equivalence import TOLERANCE, equivalence_gap
from compression.errors import NotCertified
from compression.plan import Plan
from compression.surgery import is_depthwise


def certify(
    dense: nn.Module,
    applied: Applied,
    plan: Plan,
    input_shape: tuple[int, int, int],
    *,
    thorough: bool = True,
) -> None:
    """Check that `applied` is what `plan` says and nothing else, or raise.

    Always checked: the patch keeps what the plan decides; names, shapes and attributes of all
    layers agree with each other; parameters fell and equal the cost table, to the digit; no
    storage is shared with the dense model; one input gives finite outputs of the dense shape;
    masked-dense equivalence within `TOLERANCE`, in float32 and, where that is too coarse, in
    float64.

    Must run before weights change (recalibration, training): the equivalence is of the weights
    as they were cut.

    Args:
        dense: The model before, in eval mode.
        applied: What `apply` returned.
        plan: The plan it was given.
        input_shape: C, H, W of one input.
        thorough: Also: MACs by running equal the cost table; a batch of three gives what its
            first input gives alone; gradients are finite. The cheap form is meant for proxy
            scores, the whole one for everything that may become a result.

    Raises:
        NotCertified: A check failed; the message names the site or layer, and the check.
    """
    _check_patch(applied, plan)
    _check_layers(dense, applied)
    _check_counts(dense, applied, plan)
    x = torch.randn(
        3 if thorough else 1, *input_shape, generator=torch.Generator().manual_seed(1)
    ).to(_dtype(dense))
    gap = equivalence_gap(dense, applied.model, applied.cuts, x)
    if not gap <= TOLERANCE:
        raise NotCertified(
            f"{_sites(plan)}: the thin model differs from the dense model without the removed "
            f"channels by {gap:.2g} of the output scale; {TOLERANCE:g} is allowed"
        )
    if thorough:
        _check_macs(applied, input_shape)
        _check_batch_and_gradients(applied.model, x, plan)


def _check_patch(applied: Applied, plan: Plan) -> None:
    decisions = plan.prune_channels()
    if set(decisions) != set(applied.patch.kept):
        differing = sorted(set(decisions) ^ set(applied.patch.kept))
        raise NotCertified(f"Plan and patch decide different sites: {differing}")
    for site, decision in decisions.items():
        kept = len(applied.patch.kept[site])
        if kept != decision.keep_channels:
            raise NotCertified(
                f"Site {site!r} keeps {kept} channels; the plan keeps {decision.keep_channels}"
            )


def _check_layers(dense: nn.Module, applied: Applied) -> None:
    before, after = dict(dense.named_modules()), dict(applied.model.named_modules())
    if [(n, type(m)) for n, m in before.items()] != [(n, type(m)) for n, m in after.items()]:
        raise NotCertified("The thin model has other layers than the dense one")
    ours = {tensor.data_ptr() for tensor in dense.state_dict().values() if tensor.numel()}
    for name, tensor in applied.model.state_dict().items():
        if tensor.data_ptr() in ours:
            raise NotCertified(f"{name!r} shares its storage with the dense model")
    for layer, cut in applied.cuts.items():
        passing = is_depthwise(before[layer])
        old, new = (_tensor_widths(m, passing) for m in (before[layer], after[layer]))
        for side, kept in (("in", cut.kept_in), ("out", cut.kept_out)):
            wanted = old.get(side) if kept is None else len(kept)
            if new.get(side) != wanted:
                raise NotCertified(
                    f"Layer {layer!r} has {new.get(side)} {side} channels; {wanted} should stay"
                )
    for name, module in after.items():
        _check_attributes(name, module)


def _tensor_widths(module: nn.Module, passing: bool) -> dict[str, int]:
    """Return the channels of the layer's sides by the shapes of its tensors.

    Layers that hand channels through one by one (`passing`, norms) have one side, `out`.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return {"out": int(getattr(module, "num_features", 0))}
    if weight.dim() > 1 and not passing:
        return {"in": weight.shape[1], "out": weight.shape[0]}
    return {"out": weight.shape[0]}


def _check_attributes(name: str, module: nn.Module) -> None:
    """Check that a layer's attributes say what its tensors are."""
    weight = getattr(module, "weight", None)
    said: tuple[int, ...]
    match module:
        case _ConvNd() if not module.transposed:
            said = (module.out_channels, module.in_channels // module.groups)
            true = tuple(module.weight.shape[:2])
        case nn.Linear():
            said, true = (module.out_features, module.in_features), tuple(module.weight.shape)
        case _NormBase():
            tensors = (weight, module.bias, module.running_mean, module.running_var)
            true = tuple(t.shape[0] for t in tensors if t is not None)
            said = (module.num_features,) * len(true)
        case nn.PReLU():
            said, true = (module.num_parameters,), tuple(module.weight.shape)
        case _:
            return
    if said != true:
        raise NotCertified(f"Layer {name!r} says its channels are {said}; its tensors say {true}")


def _check_counts(dense: nn.Module, applied: Applied, plan: Plan) -> None:
    before, after = count_params(dense), count_params(applied.model)
    if plan.prune_channels() and not after < before:
        raise NotCertified(f"{_sites(plan)}: parameters did not fall; {before} before and after")
    if after != applied.cost.params:
        raise NotCertified(
            f"{_sites(plan)}: {after} parameters counted; the cost table says {applied.cost.params}"
        )


def _check_macs(applied: Applied, input_shape: tuple[int, int, int]) -> None:
    macs = count_macs(applied.model, input_shape)
    if macs != applied.cost.macs:
        raise NotCertified(f"{macs} MACs counted; the cost table says {applied.cost.macs}")


def _check_batch_and_gradients(thin: nn.Module, x: Tensor, plan: Plan) -> None:
    """Check that an output does not depend on its neighbours and that training could start."""
    parameters = [p for p in thin.parameters() if p.requires_grad]
    with torch.enable_grad():
        together: Tensor = thin(x)
        gradients = (
            torch.autograd.grad(together.square().mean(), parameters, allow_unused=True)
            if parameters
            else ()
        )
    used = [gradient for gradient in gradients if gradient is not None]
    if parameters and not (used and all(bool(torch.isfinite(g).all()) for g in used)):
        raise NotCertified(f"{_sites(plan)}: gradients are missing or not finite")
    with torch.no_grad():
        alone: Tensor = thin(x[:1])
    if alone.shape != together[:1].shape:
        raise NotCertified(f"{_sites(plan)}: one input gives outputs of {tuple(alone.shape)}")
    scale = float(together.detach().abs().max())
    gap = float((alone - together[:1].detach()).abs().max())
    # Rounding differs with the batch size; ten times the tolerance is still no coincidence.
    if gap > 10 * TOLERANCE * scale:
        raise NotCertified(f"{_sites(plan)}: an output depends on the batch, by {gap / scale:.2g}")


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)


def _sites(plan: Plan) -> str:
    names = sorted(plan.prune_channels())
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"Sites {', '.join(repr(n) for n in names[:3])}{more}" if names else "Dense plan"
