"""The state of a training between two steps, as data: enough to go on as if nothing had happened.

Written as one safetensors file, whose metadata hold the numbers as JSON; nothing in it is code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from compression.errors import CheckpointInvalid, CompressionError
from compression.recover.averaging import WeightAverage
from compression.recover.hook import Hook

PROGRESS_STEPS = 20
"""Steps between two progress reports, and the width of one point of the loss curve."""

VERSION = 1
METADATA_KEY = "training_state"


@dataclasses.dataclass(slots=True)
class Course:
    """How far a training has come.

    Attributes:
        step: Steps done.
        images: Images seen.
        recent: Losses since the curve's last point.
        points: The curve so far: pairs of the last step (from 1) and the mean loss.
    """

    step: int = 0
    images: int = 0
    recent: list[float] = dataclasses.field(default_factory=list)
    points: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def record(self, loss: float, images: int, *, last: bool) -> None:
        """Note one step; `recent` is empty afterwards where it completed a point."""
        self.step += 1
        self.images += images
        self.recent.append(loss)
        if last or len(self.recent) == PROGRESS_STEPS:
            self.points.append((self.step, sum(self.recent) / len(self.recent)))
            self.recent.clear()

    def stalled(self, patience: int | None) -> bool:
        """Whether the last `patience` points were no better than the best before them."""
        if patience is None or len(self.points) <= patience:
            return False
        losses = [loss for _, loss in self.points]
        return min(losses[-patience:]) >= min(losses[:-patience])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingState:
    """What a training has come to after a step.

    Attributes:
        step: Steps done.
        images: Images seen.
        recent: Losses since the curve's last point.
        points: The curve so far.
        terms: The recipe and sizes, as JSON data; a training of other terms cannot go on here.
        tensors: By prefix: `model.` parameters and buffers, `momentum.` by parameter,
            `average.`, `hook.0.`, ...; and `order`, `place`, `generator`, `torch_generator`.
    """

    step: int
    images: int
    recent: tuple[float, ...]
    points: tuple[tuple[int, float], ...]
    terms: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, course: Course, terms: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> TrainingState:
        """Return the state after a step."""
        return cls(
            step=course.step,
            images=course.images,
            recent=tuple(course.recent),
            points=tuple(course.points),
            terms=terms,
            tensors=tensors,
        )

    def course(self) -> Course:
        """Return how far the training had come."""
        return Course(self.step, self.images, list(self.recent), list(self.points))

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below a prefix, by the rest of their names."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def to_bytes(self) -> bytes:
        """Return the state as a safetensors file."""
        numbers = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "tensors"
        }
        text = json.dumps({"version": VERSION, **numbers}, allow_nan=False)
        return save(dict(self.tensors), metadata={METADATA_KEY: text})

    @classmethod
    def from_bytes(cls, data: bytes) -> TrainingState:
        """Read what `to_bytes` wrote.

        Raises:
            CheckpointInvalid: It is damaged, or of another version.
        """
        try:
            tensors = load(data)
            header_bytes = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + header_bytes])
            numbers = json.loads(header["__metadata__"][METADATA_KEY])
            version = numbers.pop("version")
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointInvalid(
                f"A training state of {len(data)} bytes cannot be read: {error}"
            ) from error
        if version != VERSION:
            raise CheckpointInvalid(
                f"The training state has version {version}; this program reads {VERSION}"
            )
        fields = {field.name for field in dataclasses.fields(cls)} - {"tensors"}
        if set(numbers) != fields:
            raise CheckpointInvalid(
                f"The training state has the fields {sorted(numbers)}; "
                f"{sorted(fields)} are required"
            )
        numbers["recent"] = tuple(numbers["recent"])
        numbers["points"] = tuple((step, loss) for step, loss in numbers["points"])
        return cls(**numbers, tensors=tensors)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoints:
    """When a training hands out its state.

    Attributes:
        every_steps: Steps between two states, at least 1.
        keep: Takes a state, whose tensors are its own copies; called between two steps.
    """

    every_steps: int
    keep: Callable[[TrainingState], None]

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise CompressionError(
                f"Checkpoints' every_steps is {self.every_steps}; it must be at least 1"
            )


class Batches:
    """Rows of full batches, a new order every epoch, without end.

    Attributes:
        order: The present epoch's, `images` int64; empty before the first batch.
        place: How much of it was used.
    """

    def __init__(self, images: int, size: int, generator: torch.Generator) -> None:
        self.order = torch.empty(0, dtype=torch.int64)
        self.place = 0
        self._images = images
        self._size = size
        self._generator = generator

    def take(self) -> Tensor:
        """Return the next batch's rows, `size` int64."""
        if self.place + self._size > len(self.order):
            self.order = torch.randperm(self._images, generator=self._generator)
            self.place = 0
        rows = self.order[self.place : self.place + self._size]
        self.place += self._size
        return rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moving:
    """The parts of a running training that change from step to step, beside its numbers."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    average: WeightAverage
    generator: torch.Generator
    hooks: Sequence[Hook]

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of everything, contiguous, under the names of `TrainingState`."""
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{name}"] = momentum
        found |= {f"average.{k}": v for k, v in self.average.state().items()}
        for number, hook in enumerate(self.hooks):
            found |= {f"hook.{number}.{k}": v for k, v in hook.state().items()}
        found["order"] = self.batches.order
        found["place"] = torch.tensor(self.batches.place)
        found["generator"] = self.generator.get_state()
        found["torch_generator"] = torch.random.get_rng_state()
        layout = torch.contiguous_format
        return {k: v.detach().clone(memory_format=layout) for k, v in found.items()}

    def load(self, state: TrainingState) -> None:
        """Go back to a state; the hooks have started.

        Raises:
            CompressionError: The state is of another model or misses something.
        """
        try:
            self.model.load_state_dict(state.part("model"))
            parameters = dict(self.model.named_parameters())
            for name, momentum in state.part("momentum").items():
                # In the parameter's memory order, as the optimizer made it.
                own = torch.empty_like(parameters[name]).copy_(momentum)
                self.optimizer.state[parameters[name]]["momentum_buffer"] = own
            self.average.load_state(state.part("average"))
            self.batches.order = state.tensors["order"].clone()
            self.batches.place = int(state.tensors["place"])
            generators = state.tensors["generator"], state.tensors["torch_generator"]
        except (RuntimeError, KeyError) as error:
            raise CompressionError(
                f"The training state of step {state.step} does not fit the model: {error}"
            ) from error
        for number, hook in enumerate(self.hooks):
            hook.load_state(state.part(f"hook.{number}"))
        self.generator.set_state(generators[0])
        torch.random.set_rng_state(generators[1])
