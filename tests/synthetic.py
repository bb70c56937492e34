"""Made-up compression problems whose accuracy and latency are formulas of the plan.

They stand in for models, so that agents are tested in seconds without torch. The accuracy has the
cliff that real nets have: nearly flat while little is removed, then down to chance; some sites are
far more sensitive than others, so that uniform widths are not the answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from compression.artifact import Digest
from compression.cost import CostTable
from compression.layer_cost import LayerCost
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from compression.site import MODEL_SITE, Site
from compression.space import PlanSpace
from search.agent import Agent, Prepare, Request
from search.measurement import Failed, Infeasible, Interval, Measured, Measurement, Outcome, Reading
from search.objective import Constraint, Objective
from search.problem import Problem
from search.trial import PREPARED_ROLE, Fidelity, PrepareKind, Trial, state_of

DEVICE = "made-up/device"
TOP1 = Objective(metric="top1", direction="maximize")
LATENCY = Objective(metric="latency_ms", direction="minimize", device=DEVICE, statistic="p50")
MACS = Objective(metric="macs", direction="minimize")


def latency_at_most(ratio: float) -> Constraint:
    return Constraint(
        metric="latency_ms", at_most=ratio, relative_to="baseline", device=DEVICE, statistic="p50"
    )


def macs_at_most(ratio: float) -> Constraint:
    return Constraint(metric="macs", at_most=ratio, relative_to="baseline")


def download_at_most(ratio: float) -> Constraint:
    return Constraint(metric="download_bytes", at_most=ratio, relative_to="baseline")


def top1_at_least(difference: float) -> Constraint:
    return Constraint(metric="top1", at_least=difference, relative_to="baseline_difference")


@dataclasses.dataclass(frozen=True)
class Net:
    """A made-up network of `d` blocks: two convolutions each, the width between them is free.

    Attributes:
        d: Number of sites.
        noise: Standard deviation of the relative noise of a latency, and of a top1 in tenths.
        multiple: Channel rounding.
        selectors: Criteria the space knows.
        quantize: Whether the space has a precision knob.
    """

    d: int = 9
    noise: float = 0.0
    multiple: int = 2
    selectors: tuple[str, ...] = ("l2",)
    quantize: bool = True

    @property
    def widths(self) -> list[int]:
        return [16 * 2 ** (3 * i // self.d) for i in range(self.d)]

    @property
    def costs(self) -> CostTable:
        layers = [LayerCost(name="stem", op="conv", in_channels=3, out_channels=16, kernel=9,
                            positions=1024)]  # fmt: skip
        before = 16
        for i, width in enumerate(self.widths):
            positions = 1024 // (width // 16) ** 2
            tie = ((f"b{i}.conv1", 1),)
            layers += [
                LayerCost(name=f"b{i}.conv1", op="conv", in_channels=before, out_channels=width,
                          kernel=9, positions=positions, out_ties=tie),
                LayerCost(name=f"b{i}.bn1", op="norm", in_channels=width, out_channels=width,
                          params_per_channel=2, out_ties=tie),
                LayerCost(name=f"b{i}.conv2", op="conv", in_channels=width, out_channels=width,
                          kernel=9, positions=positions, in_ties=tie),
            ]  # fmt: skip
            before = width
        layers.append(
            LayerCost(name="fc", op="linear", in_channels=before, out_channels=10, bias=True)
        )
        return CostTable(tuple(layers), {f"b{i}.conv1": w for i, w in enumerate(self.widths)})

    @property
    def space(self) -> PlanSpace:
        sites = [
            Site(name=f"b{i}.conv1", kind="channels", channels=w, macs=1, params=1)
            for i, w in enumerate(self.widths)
        ]
        sites.append(Site(name=MODEL_SITE, kind="model", channels=0, macs=1, params=1))
        allow = ("prune_channels", "quantize") if self.quantize else ("prune_channels",)
        return resolve_space(
            sites, Methods(allow=allow, channel_multiple=self.multiple, selectors=self.selectors)
        )

    def top1(
        self, plan: Plan, kind: PrepareKind | None = None, reached: Plan | None = None
    ) -> float:
        """Chance is 0.1; the dense net has 0.92.

        A base that was trained at widths `reached` has got 80 % of their damage back; generated
        and shared weights feel all damage 10 % more.
        """
        damage = self._damage(plan)
        if kind in ("finetune", "admm"):
            damage -= 0.8 * min(damage, self._damage(reached or Plan()))
        elif kind is not None:
            damage = 1.1 * damage + 0.05
        return 0.1 + 0.82 * (1 + math.exp(-0.7 / 0.12)) / (1 + math.exp((damage - 0.7) / 0.12))

    def _damage(self, plan: Plan) -> float:
        decisions = plan.prune_channels()
        damage = 0.0
        for i, width in enumerate(self.widths):
            decision = decisions.get(f"b{i}.conv1")
            removed = 1 - decision.keep_channels / width if decision else 0.0
            # Sensitivities between 0.2 and 3, the same for every run, mean about 1.
            sensitivity = 0.2 + 2.8 * ((7 * i + 3) % self.d / self.d) ** 2
            bonus = 0.9 if decision and decision.selector == "l2" else 1.0
            damage += bonus * sensitivity * removed**2 / (1.2 - removed) / self.d
        if plan.quantize() is not None:
            damage += 0.02
        return damage

    def latency_ms(self, plan: Plan) -> float:
        """A fixed part and one proportional to MACs, int8 faster, odd widths slower."""
        speed = 0.45 if plan.quantize() is not None else 1.0
        odd = sum(d.keep_channels % 8 > 0 for d in plan.prune_channels().values())
        macs = self.costs.cost(plan).macs
        return 0.05 + speed * (1 + 0.02 * odd / self.d) * macs / 3e7

    def measurement(
        self,
        plan: Plan,
        rng: np.random.Generator | None = None,
        baseline: Plan | None = None,
        *,
        kind: PrepareKind | None = None,
        reached: Plan | None = None,
    ) -> Measurement:
        cost = self.costs.cost(plan)
        dense = self.costs.cost(baseline or Plan())
        top1, latency = self.top1(plan, kind, reached), self.latency_ms(plan)
        if rng is not None and self.noise:
            latency *= math.exp(rng.normal(0, self.noise))
            top1 = min(1.0, max(0.0, top1 + rng.normal(0, self.noise / 10)))
        ratio = latency / self.latency_ms(Plan())
        timed = Reading(
            metric="latency_ms", value=latency, low=latency, high=latency, n=20, device=DEVICE,
            statistic="p50", ratio=Interval(value=ratio, low=ratio, high=ratio),
        )  # fmt: skip
        return Measurement(
            (
                Reading(metric="top1", value=top1, low=top1, high=top1, n=2000, split="search"),
                timed,
                Reading.exact("macs", cost.macs, dense.macs),
                Reading.exact("flops", 2 * cost.macs, 2 * dense.macs),
                Reading.exact("params", cost.params, dense.params),
                Reading.exact("download_bytes", 0.93 * cost.weight_bytes + 800,
                              0.93 * dense.weight_bytes + 800),
            )
        )  # fmt: skip

    def problem(
        self,
        constraints: Sequence[Constraint] = (),
        objectives: Sequence[Objective] = (TOP1,),
        *,
        budget: int | None = 60,
        seed: int = 0,
    ) -> Problem:
        return Problem(
            space=self.space,
            costs=self.costs,
            objectives=tuple(objectives),
            constraints=tuple(constraints),
            baseline=self.measurement(Plan()),
            budget_trials=budget,
            seed=seed,
        )


@dataclasses.dataclass
class Loop:
    """The search loop without workers: numbers, records and tells trials in a given order."""

    net: Net
    agent: Agent
    seed: int = 0
    refuse: float = 0.0
    fail: float = 0.0
    trials: list[Trial] = dataclasses.field(default_factory=list)
    prepared: dict[Digest, tuple[PrepareKind, Plan]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 7])

    def propose(self, requests: Sequence[Request]) -> list[Trial]:
        new = []
        for request in requests:
            number = len(self.trials)
            trial = Trial(
                id=f"trl_{number:04d}",
                number=number,
                plan=request.plan,
                fidelity=Fidelity.PREPARED if isinstance(request, Prepare) else request.fidelity,
                base=request.base,
                preparation=request.preparation if isinstance(request, Prepare) else None,
                seed=number,
                agent="under test",
            )
            self.trials.append(trial)
            new.append(trial)
        return new

    def _measured(self, trial: Trial) -> Measured | Infeasible:
        rng = np.random.default_rng([self.seed, trial.number, 1])
        kind, reached = self.prepared.get(trial.base or Digest(""), (None, Plan()))
        if kind in ("finetune", "admm") and wider(trial.plan, reached):
            return Infeasible("the plan is wider than its base")
        measurement = self.net.measurement(trial.plan, rng, kind=kind, reached=reached)
        return Measured(measurement)

    def _prepared(self, trial: Trial) -> Measured:
        preparation = trial.preparation
        assert preparation is not None
        plan = trial.plan
        if preparation.kind == "tas":
            # A search by gradients would find it; here the widest uniform plan within the target.
            space, costs = self.net.space, self.net.costs
            limit = float(preparation.options["macs"])
            shares = (space.decode(space.uniform(step / 64)) for step in range(64, 0, -1))
            plan = next(p for p in shares if costs.cost(p).macs <= limit)
        self.prepared[artifact_of(trial)] = (preparation.kind, plan)
        return Measured(Measurement(()), {"plan": plan.to_json(), "top1": self.net.top1(plan)})

    def evaluate(self, trial: Trial) -> Trial:
        luck = np.random.default_rng([self.seed, trial.number]).random()
        outcome: Outcome
        if luck < self.fail:
            outcome = Failed("made-up failure")
        elif luck < self.fail + self.refuse:
            outcome = Infeasible("made-up refusal")
        else:
            outcome = self._measured(trial) if trial.preparation is None else self._prepared(trial)
        made = trial.preparation is not None and isinstance(outcome, Measured)
        done = dataclasses.replace(
            trial,
            outcome=outcome,
            state=state_of(outcome),
            recorded=trial.number,
            artifacts={PREPARED_ROLE: artifact_of(trial)} if made else {},
        )
        self.trials[trial.number] = done
        return done

    def run(self, budget: int, q: int = 1) -> list[Trial]:
        """Ask, evaluate and tell until the budget is spent or nothing is asked any more.

        Preparations count for nothing and are not returned.
        """
        while len(self.evaluations) < budget:
            requests = self.agent.ask(min(q, budget - len(self.evaluations)))
            if not requests:
                break
            self.agent.tell([self.evaluate(t) for t in self.propose(requests)])
        return self.evaluations

    @property
    def evaluations(self) -> list[Trial]:
        return [t for t in self.trials if t.preparation is None]


def artifact_of(trial: Trial) -> Digest:
    """Return the made-up name of what a preparation leaves."""
    return Digest(hashlib.sha256(trial.id.encode()).hexdigest())


def wider(plan: Plan, reached: Plan) -> bool:
    """Whether a plan keeps what `reached` has removed."""
    kept = plan.prune_channels()
    return any(
        site not in kept or kept[site].keep_channels > decision.keep_channels
        for site, decision in reached.prune_channels().items()
    )


def best_feasible(problem: Problem, trials: Sequence[Trial]) -> float:
    """Return the least main loss of the feasible trials; infinity where there is none."""
    return min(
        (
            problem.losses(t.outcome.measurement)[0]
            for t in trials
            if isinstance(t.outcome, Measured) and problem.feasible(t.outcome.measurement)
        ),
        default=math.inf,
    )
