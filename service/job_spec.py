"""From what a user posted to what workers run: every default filled in, every name checked.

All faults of a request are collected, each with its JSON pointer, before it is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from compression.afford import Means, affordable
from compression.artifact import ModelArtifact
from compression.errors import PlanInvalid
from compression.methods import PRIMITIVES, SELECTOR_NAMES, Methods
from compression.surveyed import Survey
from search import catalogue
from search.budget import Budget
from search.device import LOCAL_DEVICES, DeviceSpec
from search.errors import ProblemInvalid
from search.measurement import Measurement
from search.metric import METRICS
from search.objective import Constraint, Objective
from service.api.schemas.jobs import ConstraintIn, JobCreate, ObjectiveIn, Statistic
from service.bounds import contradiction_faults, range_faults
from service.data_fit import DatasetFacts, fit_faults
from service.device_book import DeviceBook
from service.errors import Fault, SpecInvalid
from service.measurable import no_reading
from service.settings import Settings
from workers.errors import WorkerError
from workers.job import DatasetArtifact, JobSpec, Recovery, Scoring
from workers.meters import runs_int8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Materials:
    """What a job is made of, as the server has it stored.

    Attributes:
        model: The dense model.
        survey: Its sites and costs.
        num_classes: Width of its output.
        dataset: The data.
        facts: What is known of the data.
        baseline: What is known of the dense model; from `service.dry_run.known_baseline`.
        devices: Every known device, by name.
    """

    model: ModelArtifact
    survey: Survey
    num_classes: int
    dataset: DatasetArtifact
    facts: DatasetFacts
    baseline: Measurement
    devices: Mapping[str, DeviceSpec]


def closest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean` with up to three names alike, then the names that exist."""
    names = list(known)
    alike = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(repr(n) for n in alike)}? " if alike else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{hint}Known: {shown}"


def build_job_spec(
    request: JobCreate, materials: Materials, settings: Settings, job_id: str
) -> JobSpec:
    """Return the job that workers run.

    Args:
        request: What the user posted.
        materials: What it is made of.
        settings: The operator's limits.
        job_id: Identifier of the job.

    Raises:
        SpecInvalid: With every fault that was found.
    """
    faults: list[Fault] = []
    devices = materials.devices
    objectives = _objectives(request.objectives, devices, faults)
    constraints = _constraints(request.constraints, devices, materials.baseline, settings, faults)
    faults += _unreadable(request, devices)
    methods = _methods(request, materials.survey, faults)
    if methods is not None:
        try:
            methods, _ = affordable(methods, _means(request, materials))
        except PlanInvalid as error:
            faults.append(Fault("/methods/allow", str(error)))
    agent = _agent(request, faults)
    _check_limits(request, settings, faults)
    metrics = {o.metric for o in objectives} | {c.metric for c in constraints}
    faults += fit_faults(
        materials.model, materials.num_classes, materials.dataset, materials.facts, metrics
    )
    recovery = _recovery(request, faults)
    if methods is None or agent is None or recovery is None or faults:
        raise SpecInvalid.of(faults)
    named = {d for d in (*(o.device for o in objectives), *(c.device for c in constraints)) if d}
    default = LOCAL_DEVICES[0].name
    return JobSpec(
        job_id=job_id,
        name=request.name,
        model=materials.model,
        dataset=materials.dataset,
        objectives=tuple(objectives),
        constraints=tuple(constraints),
        methods=methods,
        devices=tuple(devices[n] for n in (default, *sorted(named - {default}))),
        recovery=recovery,
        scoring=Scoring(**request.scoring.model_dump()),
        budget=Budget(**request.budget.model_dump()),
        agent=agent,
        agent_options=dict(request.agent.options),
        parallelism=request.parallelism,
        seed=request.seed,
        code_dir=str(settings.code_dir) if settings.code_dir else None,
        memory=request.memory,
    )


def left_out(request: JobCreate, materials: Materials) -> tuple[str, ...]:
    """Return which of the allowed methods the job cannot afford, and why; the spec is valid."""
    methods = _methods(request, materials.survey, [])
    return () if methods is None else affordable(methods, _means(request, materials))[1]


def _means(request: JobCreate, materials: Materials) -> Means:
    """Return what the job's data and the devices that it names allow."""
    named = [o.device for o in request.objectives] + [c.device for c in request.constraints]
    found = (
        materials.devices[name]
        for name in dict.fromkeys(filter(None, named))
        if name in materials.devices
    )
    float_only = (device.name for device in found if not runs_int8(device.runtime))
    return dataclasses.replace(materials.facts.means, float_only=tuple(float_only))


def check_constraints(
    wanted: Sequence[ConstraintIn],
    devices: Mapping[str, DeviceSpec],
    baseline: Measurement,
    settings: Settings,
) -> tuple[Constraint, ...]:
    """Return bounds with every default filled in.

    Args:
        wanted: What the user posted.
        devices: Every known device, by name.
        baseline: What is known of the dense model.
        settings: The operator's limits.

    Raises:
        SpecInvalid: With every fault that was found.
    """
    faults: list[Fault] = []
    found = _constraints(wanted, devices, baseline, settings, faults)
    if faults:
        raise SpecInvalid.of(faults)
    return tuple(found)


def check_objective(wanted: ObjectiveIn, devices: Mapping[str, DeviceSpec]) -> Objective:
    """Return one objective, posted as the member `objective`, with every default filled in.

    Raises:
        SpecInvalid: It names what does not exist.
    """
    faults: list[Fault] = []
    found = _objectives([wanted], devices, faults, at="/objective")
    if faults:
        raise SpecInvalid.of(faults)
    return found[0]


def _place(
    wanted: ObjectiveIn | ConstraintIn,
    where: str,
    devices: Mapping[str, DeviceSpec],
    faults: list[Fault],
) -> tuple[str | None, Statistic | None] | None:
    """Return device and statistic with defaults filled in; None after a fault."""
    metric = METRICS.get(wanted.metric)
    if metric is None:
        message = f"Unknown metric {wanted.metric!r}; {closest(wanted.metric, METRICS)}"
        faults.append(Fault(f"{where}/metric", message))
        return None
    if not metric.timed:
        for field in ("device", "statistic"):
            if getattr(wanted, field) is not None:
                message = f"Metric {wanted.metric!r} is not timed: it takes no {field}"
                faults.append(Fault(f"{where}/{field}", message))
                return None
        return None, None
    if wanted.device is None:
        message = (
            f"Metric {wanted.metric!r} is true for one device only, and none is assumed: "
            f"name one of {', '.join(devices)}"
        )
        faults.append(Fault(f"{where}/device", message))
        return None
    if wanted.device not in devices:
        known = f"Unknown device {wanted.device!r}; {closest(wanted.device, devices)}"
        reason = devices.refusal(wanted.device) if isinstance(devices, DeviceBook) else None
        message = reason or known
        faults.append(Fault(f"{where}/device", message))
        return None
    return wanted.device, wanted.statistic or "p50"


def _objectives(
    wanted: Sequence[ObjectiveIn],
    devices: Mapping[str, DeviceSpec],
    faults: list[Fault],
    at: str = "/objectives/{}",
) -> list[Objective]:
    found: list[Objective] = []
    for index, item in enumerate(wanted):
        where = at.format(index)
        place = _place(item, where, devices, faults)
        if place is None:
            continue
        if place[0] is not None and devices[place[0]].place == "virtual":
            message = f"{place[0]} gives estimates: they may be bounded, and are no objective"
            faults.append(Fault(f"{where}/device", message))
            continue
        natural: Literal["maximize", "minimize"] = METRICS[item.metric].direction
        if item.direction not in (None, natural):
            message = f"direction of {item.metric} is {item.direction!r}; it is {natural}d"
            faults.append(Fault(f"{where}/direction", message))
            continue
        objective = Objective(
            metric=item.metric, direction=natural, device=place[0], statistic=place[1]
        )
        if objective in found:
            message = f"{item.metric} is an objective twice; the first is {found.index(objective)}"
            faults.append(Fault(where, message))
        found.append(objective)
    return found


def _constraints(
    wanted: Sequence[ConstraintIn],
    devices: Mapping[str, DeviceSpec],
    baseline: Measurement,
    settings: Settings,
    faults: list[Fault],
) -> list[Constraint]:
    if len(wanted) > settings.max_constraints:
        message = f"{len(wanted)} constraints; at most {settings.max_constraints} are accepted"
        faults.append(Fault("/constraints", message))
        return []
    found: list[Constraint] = []
    before = len(faults)
    for index, item in enumerate(wanted):
        where = f"/constraints/{index}"
        place = _place(item, where, devices, faults)
        if place is None:
            continue
        try:
            constraint = Constraint(
                metric=item.metric,
                at_most=item.at_most,
                at_least=item.at_least,
                relative_to=item.relative_to,
                device=place[0],
                statistic=place[1],
            )
        except ProblemInvalid as error:
            faults.append(Fault(where, str(error)))
            continue
        faults += range_faults(index, constraint)
        found.append(constraint)
    if len(faults) == before:
        # Positions in the request and in `found` agree only while nothing was left out.
        faults += contradiction_faults(found, baseline)
    return found


def _unreadable(request: JobCreate, devices: Mapping[str, DeviceSpec]) -> list[Fault]:
    """Return the timed metrics that their device never gives: every trial would fail by them.

    Only of new jobs: what a finished one has measured may be asked for wherever it was read.
    """
    wanted: list[tuple[str, ObjectiveIn | ConstraintIn]] = [
        *((f"/objectives/{i}", item) for i, item in enumerate(request.objectives)),
        *((f"/constraints/{i}", item) for i, item in enumerate(request.constraints)),
    ]
    faults = []
    for where, item in wanted:
        metric = METRICS.get(item.metric)
        device = None if item.device is None else devices.get(item.device)
        if metric is not None and metric.timed and device is not None:
            reason = no_reading(item.metric, item.statistic or "p50", device)
            faults += [] if reason is None else [Fault(where, reason)]
    return faults


def _methods(request: JobCreate, survey: Survey, faults: list[Fault]) -> Methods | None:
    wanted = request.methods
    before = len(faults)
    for field, names, known in (
        ("allow", wanted.allow, PRIMITIVES),
        ("selectors", wanted.selectors, SELECTOR_NAMES),
    ):
        for index, name in enumerate(names):
            if name not in known:
                message = f"Unknown name {name!r} in methods.{field}; {closest(name, known)}"
                faults.append(Fault(f"/methods/{field}/{index}", message))
            elif name in names[:index]:
                message = f"methods.{field} names {name!r} twice"
                faults.append(Fault(f"/methods/{field}/{index}", message))
    freezable = dict.fromkeys(n for site in survey.sites for n in (site.name, *site.members))
    for index, name in enumerate(wanted.freeze):
        if name not in freezable:
            message = f"The model has no site or layer {name!r}; {closest(name, freezable)}"
            faults.append(Fault(f"/methods/freeze/{index}", message))
    if len(faults) > before:
        return None
    try:
        return Methods(
            allow=tuple(wanted.allow),
            freeze=tuple(wanted.freeze),
            channel_multiple=wanted.channel_multiple,
            min_keep_ratio=wanted.min_keep_ratio,
            selectors=tuple(wanted.selectors),
            factorize=tuple(wanted.factorize),
            sparsify=tuple(wanted.sparsify),
            quantize_weights=tuple(wanted.quantize_weights),
            share=tuple(wanted.share),
            refit=wanted.refit,
        )
    except PlanInvalid as error:
        faults.append(Fault("/methods", str(error)))
        return None


def _recovery(request: JobCreate, faults: list[Fault]) -> Recovery | None:
    try:
        return Recovery(**request.recovery.model_dump())
    except WorkerError as error:
        faults.append(Fault("/recovery/feature_loss", str(error)))
        return None


def _agent(request: JobCreate, faults: list[Fault]) -> str | None:
    name = catalogue.DEFAULT if request.agent.name == "auto" else request.agent.name
    if name not in catalogue.AGENTS:
        message = f"Unknown agent {name!r}; {closest(name, ('auto', *catalogue.AGENTS))}"
        faults.append(Fault("/agent/name", message))
        return None
    try:
        catalogue.options(name, request.agent.options)
    except ProblemInvalid as error:
        faults.append(Fault("/agent/options", str(error)))
        return None
    return name


def _check_limits(request: JobCreate, settings: Settings, faults: list[Fault]) -> None:
    budget = request.budget
    if budget.trials is None and budget.wall_s is None and budget.device_s is None:
        message = "The budget needs at least one of trials, wall_s and device_s, or no end is set"
        faults.append(Fault("/budget", message))
    limits: tuple[tuple[str, float | None, float], ...] = (
        ("budget/trials", budget.trials, settings.max_trials),
        ("budget/wall_s", budget.wall_s, settings.max_wall_s),
        ("budget/device_s", budget.device_s, settings.max_wall_s),
        ("parallelism", request.parallelism, settings.max_parallelism),
    )
    for field, value, limit in limits:
        if value is not None and value > limit:
            message = f"{field.replace('/', '.')} is {value:g}; this server takes at most {limit:g}"
            faults.append(Fault(f"/{field}", message))
