"""The strategy that proposes plans: the treaty between an agent and the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compression.artifact import Digest
from compression.plan import Plan
from search.trial import Fidelity, Preparation, PrepareKind, Trial


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Order: score `plan` at `fidelity`, starting from artifact `base` (None: the job's model)."""

    plan: Plan
    fidelity: Fidelity = Fidelity.PROXY
    base: Digest | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Order: long, checkpointed training whose artifact later requests name as their base.

    It becomes a trial at fidelity `prepared`. When it is told, its outcome is `Measured`: the
    artifact is `trial.artifacts[PREPARED_ROLE]`, `outcome.found` holds what the training found out
    (JSON, by kind) and the readings may be none.

    | kind | training | `found` |
    |---|---|---|
    | `finetune` | `plan` is applied to `base`, then a recovery of `steps` | `plan`, `top1` |
    | `admm` | ADMM of `base` towards `plan`, hard pruning, retraining, purification | `plan`, ... |
    | `pruning_net` | a net that generates the weights of any widths (MetaPruning) | `top1_dense` |
    | `supernet` | shared weights under the sandwich rule (slimmable networks) | `top1_dense` |
    | `tas` | differentiable search of widths and depths | `plan`, ... |

    Artifacts of the first two are networks with the plan's widths; a request with such a base
    names the *final* widths, counted in the job's model, and can only go below the base's.
    Artifacts of `pruning_net` and `supernet` hand out weights for any plan over the job's model.

    Attributes:
        kind: Which training.
        plan: What is applied before (`finetune`) or reached by (`admm`) training; else dense.
        base: Artifact to start from; None for the job's model.
        options: JSON values, by kind.
    """

    kind: PrepareKind
    plan: Plan = dataclasses.field(default_factory=Plan)
    base: Digest | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def preparation(self) -> Preparation:
        """Kind and options, as a trial carries them."""
        return Preparation(kind=self.kind, options=self.options)


Request = Evaluate | Prepare


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """What cannot be rebuilt from the told trials: JSON and arrays, never pickle.

    Attributes:
        data: JSON values.
        arrays: Name to array.
    """

    data: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)


class Agent(Protocol):
    """Proposes plans and learns from finished trials.

    The loop calls, on one thread: `restore` at most once and first; then `ask` and `tell` in any
    order. Laws, each held by `tests/contracts/agent.py`:

    * Every plan evaluated is in `problem.space`, and no (plan, fidelity, base) is asked for twice.
    * `ask` may return fewer than `n` requests, or none while it waits for tells; it never blocks
      for ever: with nothing pending it returns at least one unless its space is exhausted.
    * Everything after depends only on the problem (with its seed), the options, the number of
      requests asked so far and the told trials: same seed, same future.
    * `tell` takes finished trials, each once, failures included, also ones that this agent did
      not ask for (the dense baseline comes first). The order within one call does not matter. A
      plan that was told is not asked for again.
    * A new agent that is given `restore(snapshot)` and then `tell(all trials told so far)`
      continues identically.
    * It survives histories of failures only and of infeasible trials only.
    * It never trains or touches the user's model: it orders that.
    """

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n >= 1` new requests."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials, each told once in the agent's life."""
        ...

    def snapshot(self) -> Snapshot:
        """Return what `restore` needs, apart from the told trials; small."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where the agent that made `snapshot` was, before any `tell`."""
        ...
