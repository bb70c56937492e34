"""Differentiable search of widths and depths on a trained model (TAS).

Every channel site has a logit per width, every chain of blocks one per depth. Steps on the weights
and steps on the logits alternate, on two halves of the training data; the logits also go down the
gradient of an expected cost. The most probable choices are the result, and beside them the mean
ones: some hundred steps leave probabilities so flat that which is the largest is half chance.

Reference:
    Dong & Yang (2019), "Network Pruning via Transformable Architecture Search", NeurIPS 2019,
    algorithm 1, https://arxiv.org/abs/1905.09717.

Deviations:
    * The search starts from the user's trained weights and distils from the same network in its
      steps on the weights; the paper trains from scratch for 600 epochs.
    * The mean choices are reported as a second plan; the paper has the most probable ones alone.
    * Without labels both losses are the distillation's.
    * Temperatures start at 1, and the logits wait for a quarter of the steps (`SearchRecipe`); in
      the paper they start at 10 and nothing waits. Its schedules are options.
    * The gradient of the weights is clipped, as in every training here.
    * See `width_depth_choices`, `width_depth_cost` and `width_depth_network` for theirs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.backend import Backend
from compression.cost import CostTable
from compression.coupling import Coupling, Indices
from compression.errors import CompressionError
from compression.plan import Plan
from compression.preprocess import black, preprocess
from compression.recover.augment import crop_and_flip
from compression.recover.losses import distillation_loss
from compression.recover.training import MAX_GRADIENT_NORM, TrainingData
from compression.recover.training_state import Checkpoints, TrainingState
from compression.space import PlanSpace
from compression.supernets.gumbel import gap, temperature
from compression.supernets.width_depth_choices import DepthChoice, WidthChoice, plan_of
from compression.supernets.width_depth_cost import ExpectedMacs, cost_loss
from compression.supernets.width_depth_logits import Logits
from compression.supernets.width_depth_network import WidthDepthNetwork
from compression.supernets.width_depth_recipe import SearchRecipe
from compression.supernets.width_depth_state import Searching, optimizers, require_same

PROGRESS_STEPS = 20
"""Steps between two progress reports, and between two rows of the log."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchSpace:
    """What is chosen, and by which order channels go.

    Attributes:
        plans: The space of plans; results are in it.
        costs: Of the dense model.
        couplings: By site.
        order: By site, its channels, most important first.
        selector: The criterion of that order.
        widths: What sites choose from; may be none.
        depths: What chains of blocks choose from; may be none.
    """

    plans: PlanSpace
    costs: CostTable
    couplings: Mapping[str, Coupling]
    order: Mapping[str, Indices]
    selector: str
    widths: tuple[WidthChoice, ...]
    depths: tuple[DepthChoice, ...]

    def __post_init__(self) -> None:
        if not self.widths and not self.depths:
            raise CompressionError("Nothing to search: no site has two widths, no stage two depths")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Where the search stood after a step.

    Attributes:
        step: From 1.
        loss: Of the step on the weights, the mean since the row before.
        choice_loss: Of the step on the logits without the cost, likewise; 0 while they wait.
        expected_macs: Of the probabilities.
        macs: Of the most probable choices, exact.
        discrepancy: Mean probability of the first choice minus the second's.
    """

    step: int
    loss: float
    choice_loss: float
    expected_macs: float
    macs: float
    discrepancy: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of a search.

    Attributes:
        plan: The most probable choices; not repaired to the target.
        expected_plan: The choices nearest to the mean width of every site and the mean depth of
            every chain; likewise.
        macs: Those of `plan`, exact: layers of skipped blocks cost nothing.
        expected_macs: Those that the probabilities expect.
        discrepancy: Mean probability of the first choice minus the second's, in [0, 1].
        widths: By site, pairs of width and probability.
        depths: By chain of blocks, pairs of how many stay and probability.
        log: Every `PROGRESS_STEPS` steps, and at the end.
    """

    plan: Plan
    expected_plan: Plan
    macs: int
    expected_macs: float
    discrepancy: float
    widths: Mapping[str, tuple[tuple[int, float], ...]]
    depths: Mapping[str, tuple[tuple[int, float], ...]]
    log: tuple[Row, ...]


def search_widths(
    model: nn.Module,
    space: SearchSpace,
    data: TrainingData,
    recipe: SearchRecipe,
    *,
    teacher: nn.Module | None,
    generator: torch.Generator,
    backend: Backend,
    progress: Callable[[Mapping[str, float]], None],
    breathe: Callable[[], None],
    checkpoints: Checkpoints | None = None,
    state: TrainingState | None = None,
) -> Found:
    """Search by gradients, and train the shared weights in place on the way.

    Same arguments, generator state and number of threads: same result, interrupted or not.

    Args:
        model: The trained dense model; its weights are changed, its structure is not. In eval mode
            afterwards; statistics of BatchNorm are of mixtures and want recalibration.
        space: What is chosen.
        data: Its first half trains weights, its second half choices.
        recipe: How.
        teacher: The dense model as it was; None without distillation.
        generator: Of every draw.
        backend: How to compute forward and backward passes.
        progress: Called every 20 steps with `step`, `of` and the numbers of a `Row`.
        breathe: Called before every step; may block as long as it likes.
        checkpoints: When to hand out the state; None: never.
        state: Where an interrupted search of the same arguments goes on.

    Raises:
        CompressionError: There are neither labels nor a teacher, the loss is not finite, or
            `state` belongs to another search.
    """
    if data.labels is None and teacher is None:
        raise CompressionError("The search has neither labels nor a teacher to learn from")
    if len(data.images) < 4:
        raise CompressionError(f"The search has {len(data.images)} images; 4 are required")
    terms = {**recipe.terms(), "images": len(data.images)}
    if state is not None:
        require_same(state.terms, terms)
    backend.prepare(model).train()
    if teacher is not None:
        backend.prepare(teacher).eval()
    network = WidthDepthNetwork(
        model, space.couplings, space.order, space.widths, space.depths, recipe.alignment
    )
    logits = Logits.drawn(space.widths, space.depths, generator)
    running = _Search(network, logits, space, data, recipe, teacher, generator, backend)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            if state is not None:
                running.moving.load(state)
            while running.moving.step < recipe.steps:
                breathe()
                row = running.step()
                if row is not None:
                    progress({**dataclasses.asdict(row), "of": recipe.steps})
                step = running.moving.step
                if checkpoints is not None and step % checkpoints.every_steps == 0:
                    checkpoints.keep(running.moving.state(terms))
    finally:
        network.close()
    model.eval()
    return running.found()


class _Search:
    """One running search."""

    def __init__(
        self,
        network: WidthDepthNetwork,
        logits: Logits,
        space: SearchSpace,
        data: TrainingData,
        recipe: SearchRecipe,
        teacher: nn.Module | None,
        generator: torch.Generator,
        backend: Backend,
    ) -> None:
        self._network = network
        self._logits = logits
        self._space = space
        self._data = data
        self._recipe = recipe
        self._teacher = teacher
        self._generator = generator
        self._backend = backend
        self._expected = ExpectedMacs(space.costs, space.depths)
        self._largest = space.costs.cost(Plan()).macs
        self._known: tuple[Plan, int] | None = None
        weights, choices = optimizers(network.model, logits, recipe)
        half = len(data.images) // 2
        self._halves = (np.arange(half), np.arange(half, len(data.images)))
        self.moving = Searching.begin(
            network.model, logits, weights, choices, generator, self._halves, recipe.batch_size
        )

    def step(self) -> Row | None:
        """Take one step on the weights and one on the logits; a row where one is complete."""
        moving, total = self.moving, self._recipe.steps
        tau = temperature(self._recipe.cooling, moving.step, total)
        loss = self._weight_step(tau)
        waits = moving.step < int(self._recipe.warm_up * total)
        choice_loss = 0.0 if waits else self._choice_step(tau)
        moving.step += 1
        moving.recent.append((loss, choice_loss))
        if moving.step % PROGRESS_STEPS and moving.step != total:
            return None
        means = np.mean(moving.recent, axis=0).tolist()
        moving.recent.clear()
        row = Row(
            step=moving.step,
            loss=means[0],
            choice_loss=means[1],
            expected_macs=float(self._expected_macs().detach()),
            macs=float(self._decided()[1]),
            discrepancy=self._discrepancy(),
        )
        moving.rows.append(tuple(float(value) for value in dataclasses.astuple(row)))
        return row

    def found(self) -> Found:
        """Return what the logits say now."""
        plan, macs = self._decided()
        widths, depths = self._logits.probabilities()
        return Found(
            plan=plan,
            expected_plan=self._plan(*self._logits.expected()),
            macs=macs,
            expected_macs=float(self._expected_macs().detach()),
            discrepancy=self._discrepancy(),
            widths={
                choice.site: tuple(zip(choice.candidates, p.tolist(), strict=True))
                for choice, p in zip(self._space.widths, widths, strict=True)
            },
            depths={
                choice.name: tuple(zip(choice.candidates, p.tolist(), strict=True))
                for choice, p in zip(self._space.depths, depths, strict=True)
            },
            log=tuple(
                Row(step=int(step), loss=a, choice_loss=b, expected_macs=e, macs=m, discrepancy=d)
                for step, a, b, e, m, d in self.moving.rows
            ),
        )

    def _weight_step(self, tau: float) -> float:
        recipe = self._recipe
        inputs, labels = self._batch(0)
        with torch.no_grad():
            self._network.mixture = self._logits.sample(tau, self._generator)
        loss = self._loss(inputs, labels, recipe.distill_weight)
        optimizer = self.moving.weights
        place = self.moving.step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * place)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        return self._finite(loss)

    def _choice_step(self, tau: float) -> float:
        recipe = self._recipe
        inputs, labels = self._batch(1)
        self._network.mixture = self._logits.sample(tau, self._generator)
        loss = self._loss(inputs, labels, 0.0 if labels is not None else 1.0)
        cost = cost_loss(
            self._expected_macs(),
            self._decided()[1],
            recipe.macs,
            largest=self._largest,
            tolerance=recipe.tolerance,
            t=recipe.tolerated,
        )
        parameters = self._logits.parameters()
        gradients = torch.autograd.grad(
            loss.double() + recipe.cost_weight * cost, parameters, allow_unused=True
        )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
        self.moving.choices.step()
        self._known = None
        return self._finite(loss)

    def _batch(self, half: int) -> tuple[Tensor, Tensor | None]:
        rows = self._halves[half][self.moving.batches[half].take().numpy()]
        inputs = preprocess(self._data.images[rows], self._data.preprocessing)
        if self._recipe.augment:
            border = black(self._data.preprocessing, inputs.shape[1])
            inputs = crop_and_flip(inputs, self._generator, border=border)
        labels = self._data.labels
        return inputs, None if labels is None else torch.from_numpy(labels[rows])

    def _loss(self, inputs: Tensor, labels: Tensor | None, distill_weight: float) -> Tensor:
        logits = self._backend.forward(self._network, inputs)
        share = distill_weight if labels is not None else 1.0
        loss = torch.zeros(())
        if self._teacher is not None and share > 0:
            with torch.no_grad():
                wanted = self._backend.forward(self._teacher, inputs)
            loss = share * distillation_loss(logits, wanted, self._recipe.temperature)
        elif labels is not None:
            share = 0.0
        if labels is not None and share < 1:
            loss = loss + (1 - share) * functional.cross_entropy(logits, labels)
        return loss

    def _finite(self, loss: Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise CompressionError(
                f"The search's loss is {value} at step {self.moving.step + 1} of "
                f"{self._recipe.steps}; learning_rate is {self._recipe.learning_rate}"
            )
        return value

    def _expected_macs(self) -> Tensor:
        widths, depths = self._logits.probabilities()
        sites = {
            choice.site: p @ torch.tensor(choice.candidates, dtype=p.dtype)
            for choice, p in zip(self._space.widths, widths, strict=True)
        }
        return self._expected(sites, depths)

    def _decided(self) -> tuple[Plan, int]:
        """Return the plan of the most probable choices and its exact MACs."""
        if self._known is None:
            plan = self._plan(*self._logits.decided())
            self._known = plan, self._space.costs.cost(plan).macs
        return self._known

    def _plan(self, kept: Mapping[str, float], dropped: Sequence[str]) -> Plan:
        return plan_of(self._space.plans, kept, dropped, self._space.selector)

    def _discrepancy(self) -> float:
        gaps: Sequence[float] = [gap(p) for p in self._logits.parameters()]
        return sum(gaps) / len(gaps)
