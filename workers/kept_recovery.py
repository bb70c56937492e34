"""Where the recovery of a trial stands, over all its attempts.

A recovery has parts: everything but codes, then codes. What is kept of it is a small JSON
document that names blobs of the store: the weights after every part that is done, and the state
of the training that was running.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import load, save
from torch import nn

from compression.artifact import Digest
from compression.backend import Backend
from compression.errors import CheckpointInvalid
from compression.plan import canonical_json
from compression.recover.training_state import Checkpoints, TrainingState
from workers.errors import BlobMissing
from workers.race import RUNG, SCORE
from workers.store import ArtifactStore

logger = logging.getLogger(__name__)

VERSION = 1

CHECKPOINT_STEPS = 20
"""Steps between two looks at the clock."""

CHECKPOINT_S = 60.0
"""Shortest time between two checkpoints of one training: what a lost attempt costs at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a recovery.

    Attributes:
        weights: Of the model after each part that is done, in their order.
        state: Of the training of the part that follows; None where it has not begun.
        scores: Accuracy at the rungs of the finalists' race that were reached.
    """

    weights: tuple[Digest, ...] = ()
    state: Digest | None = None
    scores: tuple[float, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the document."""
        data: dict[str, Any] = {
            "version": VERSION,
            "weights": list(self.weights),
            "state": self.state,
        }
        if self.scores:
            data["scores"] = list(self.scores)
        return canonical_json(data).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Kept:
        """Read what `to_bytes` wrote.

        Raises:
            CheckpointInvalid: It is damaged, or of another version.
        """
        try:
            found = json.loads(data)
            if found["version"] != VERSION:
                raise CheckpointInvalid(
                    f"The recovery's checkpoint has version {found['version']}; "
                    f"this program reads {VERSION}"
                )
            state = found["state"]
            return Kept(
                tuple(Digest(name) for name in found["weights"]),
                None if state is None else Digest(state),
                tuple(float(score) for score in found.get("scores", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointInvalid):
                raise
            raise CheckpointInvalid("The recovery's checkpoint cannot be read") from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rungs:
    """Where a training is scored on its way.

    Attributes:
        steps: Ascending; each counts from the first checkpoint at or after it.
        score: Takes the state and returns the accuracy of its model; changes nothing.
        report: Takes the progress, after the checkpoint was kept.
    """

    steps: tuple[int, ...]
    score: Callable[[TrainingState], float]
    report: Callable[[Mapping[str, Any]], None]


class KeptRecovery:
    """Goes through the parts of one recovery; each part begins with `enter`.

    Attributes:
        kept: What the newest checkpoint says.
    """

    def __init__(
        self, store: ArtifactStore, keep: Callable[[bytes], None], resume: bytes | None = None
    ) -> None:
        """Begin, or go on.

        Args:
            store: Where weights and states are.
            keep: Takes every checkpoint.
            resume: The newest one of an earlier attempt. One that cannot be read, or whose blobs
                are gone, is as good as none.
        """
        self._store = store
        self._keep = keep
        self._part = -1
        self.kept = Kept()
        if resume is not None:
            try:
                self.kept = Kept.from_bytes(resume)
                for digest in self.kept.weights:
                    store.size_bytes(digest)
            except (CheckpointInvalid, BlobMissing) as error:
                logger.warning("recovery begins anew", extra={"reason": str(error)})
                self.kept = Kept()

    def enter(self, model: nn.Module, backend: Backend) -> bool:
        """Begin the next part; whether it was done before, then `model` has its weights now.

        Args:
            model: As the part's plan made it; brought into the backend's layout, as by training.
            backend: Of the job.
        """
        self._part += 1
        if self._part >= len(self.kept.weights):
            return False
        backend.prepare(model).load_state_dict(load(self._store.get(self.kept.weights[self._part])))
        model.eval()
        return True

    def state(self) -> TrainingState | None:
        """Return where the training of this part goes on; None at its beginning."""
        if self.kept.state is None or self._part != len(self.kept.weights):
            return None
        try:
            return TrainingState.from_bytes(self._store.get(self.kept.state))
        except (CheckpointInvalid, BlobMissing) as error:
            logger.warning("training begins anew", extra={"reason": str(error)})
            return None

    def checkpoints(self, rungs: Rungs | None = None) -> Checkpoints:
        """Return when this part's training is kept: now and then, and at every rung."""
        last = time.monotonic()

        def keep(state: TrainingState) -> None:
            nonlocal last
            scores = self.kept.scores
            due = () if rungs is None else rungs.steps[len(scores) :]
            reached = sum(step <= state.step for step in due)
            if reached and rungs is not None:
                scores = (*scores, *[rungs.score(state)] * reached)
            elif time.monotonic() - last < CHECKPOINT_S:
                return
            digest = self._store.put(state.to_bytes())
            self._note(dataclasses.replace(self.kept, state=digest, scores=scores))
            last = time.monotonic()
            for number in range(len(scores) - reached, len(scores)):
                assert rungs is not None
                at = {"step": "race", RUNG: number + 1, "of": len(rungs.steps)}
                rungs.report({**at, SCORE: scores[number]})

        return Checkpoints(every_steps=CHECKPOINT_STEPS, keep=keep)

    def leave(self, model: nn.Module) -> None:
        """End this part: `model` has its final weights."""
        state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        done = self.kept.weights[: self._part]
        weights = (*done, self._store.put(save(state)))
        self._note(Kept(weights, scores=self.kept.scores))

    def _note(self, kept: Kept) -> None:
        self.kept = kept
        self._keep(kept.to_bytes())
