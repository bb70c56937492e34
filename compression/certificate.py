"""The certificate: what came out of applying a plan is what the plan says, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compression.apply import Applied, Stage
from compression.catalogue import PRIMITIVES
from compression.counting import count_macs, count_params
from compression.equivalence import FORWARD_ERRORS, TOLERANCE
from compression.errors import NotCertified
from compression.plan import Plan
from compression.primitives.prune_channels import ChannelPruning, Removal
from compression.surgery import is_depthwise


def certify(
    dense: nn.Module,
    applied: Applied,
    plan: Plan,
    input_shape: tuple[int, int, int],
    *,
    thorough: bool = True,
    since: int = 0,
) -> None:
    """Check that `applied` is what `plan` says and nothing else, or raise.

    Always checked: every primitive's own invariant, between what it was given and what it made
    (for removed channels: masked-dense equivalence within `TOLERANCE`, in float32 and, where that
    is too coarse, in float64); the patch keeps what the plan decides; names, shapes and
    attributes of all layers agree with each other; parameters equal the cost table, to the digit,
    and fell where the plan removes some; no storage is shared with the dense model; one input
    gives finite outputs of the dense shape.

    Must run before weights change (recalibration, training): the invariants are of the weights
    as they were made.

    Args:
        dense: The model before, in eval mode.
        applied: What `apply` returned.
        plan: The plan it was given.
        input_shape: C, H, W of one input.
        thorough: Also: equivalence on three inputs; MACs by running equal the cost table; a batch
            of three gives what its first input gives alone; gradients are finite. The cheap form
            is meant for proxy scores, the whole one for everything that may become a result.

        since: Number of stages that were certified before, when they were made; what they made
            may have been trained since.

    Raises:
        NotCertified: A check failed; the message names the site or layer, and the check.
    """
    x = torch.randn(
        3 if thorough else 1, *input_shape, generator=torch.Generator().manual_seed(1)
    ).to(_dtype(dense))
    _check_plan(applied, plan)
    for stage in applied.stages[since:]:
        if isinstance(stage.record, Removal):
            _check_removal(stage, stage.record, plan, x)
        else:
            PRIMITIVES[stage.kind].verify(stage.before, stage.after, stage.record)
    _check_storage(dense, applied)
    for name, module in applied.model.named_modules():
        _check_attributes(name, module)
    _check_counts(dense, applied, plan)
    _check_outputs(dense, applied, x[:1], plan)
    if thorough:
        _check_macs(applied, input_shape)
        _check_batch_and_gradients(applied.model, x, plan)


def _check_plan(applied: Applied, plan: Plan) -> None:
    done = {stage.kind: stage.decisions for stage in applied.stages}
    for kind in PRIMITIVES:
        differing = sorted(set(plan.of_kind(kind)) ^ set(done.get(kind, {})))
        if differing:
            raise NotCertified(f"Plan and patch decide different sites ({kind}): {differing}")


def _check_removal(stage: Stage, removal: Removal, plan: Plan, x: Tensor) -> None:
    for site, decision in plan.prune_channels().items():
        kept = len(removal.kept.get(site, ()))
        if kept != decision.keep_channels:
            raise NotCertified(
                f"Site {site!r} keeps {kept} channels; the plan keeps {decision.keep_channels}"
            )
    before, after = dict(stage.before.named_modules()), dict(stage.after.named_modules())
    if _classes(before) != _classes(after):
        raise NotCertified("The thin model has other layers than the dense one")
    for layer, cut in removal.cuts.items():
        passing = is_depthwise(before[layer])
        old, new = (_tensor_widths(m, passing) for m in (before[layer], after[layer]))
        for side, kept_side in (("in", cut.kept_in), ("out", cut.kept_out)):
            wanted = old.get(side) if kept_side is None else len(kept_side)
            if new.get(side) != wanted:
                raise NotCertified(
                    f"Layer {layer!r} has {new.get(side)} {side} channels; {wanted} should stay"
                )
    ChannelPruning().verify(stage.before, stage.after, dataclasses.replace(removal, probe=x))


def _classes(modules: Mapping[str, nn.Module]) -> list[tuple[str, type[nn.Module]]]:
    """Return names and classes; each copy of a traced graph has a class of its own."""
    traced = fx.GraphModule
    return [(n, traced if isinstance(m, traced) else type(m)) for n, m in modules.items()]


def _check_storage(dense: nn.Module, applied: Applied) -> None:
    ours = {tensor.data_ptr() for tensor in dense.state_dict().values() if tensor.numel()}
    for name, tensor in applied.model.state_dict().items():
        if tensor.data_ptr() in ours:
            raise NotCertified(f"{name!r} shares its storage with the dense model")


def _check_outputs(dense: nn.Module, applied: Applied, x: Tensor, plan: Plan) -> None:
    with torch.no_grad():
        wanted: Tensor = dense(x)
        try:
            found: Tensor = applied.model(x)
        except FORWARD_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NotCertified(f"{_sites(plan)}: the forward pass fails: {reason}") from error
    if found.shape != wanted.shape or not torch.isfinite(found).all():
        raise NotCertified(
            f"{_sites(plan)}: outputs are {tuple(found.shape)} or not finite; the dense model "
            f"gives {tuple(wanted.shape)}"
        )


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
    removes = plan.prune_channels() or plan.dropped() or plan.factorize()
    if removes and not after < before:
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
    names = [name for name, _ in plan.decisions]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"Sites {', '.join(repr(n) for n in names[:3])}{more}" if names else "Dense plan"
