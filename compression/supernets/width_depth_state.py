"""What a search of widths and depths changes from step to step, and how it is written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compression.coupling import Indices
from compression.errors import CompressionError
from compression.recover.training_state import Batches, TrainingState
from compression.supernets.width_depth_logits import Logits
from compression.supernets.width_depth_recipe import SearchRecipe

BETAS = (0.5, 0.999)
"""Of Adam on the logits, as in the authors' code."""

ROW = 6
"""Numbers in a row of the log."""


def optimizers(
    model: nn.Module, logits: Logits, recipe: SearchRecipe
) -> tuple[torch.optim.SGD, torch.optim.Adam]:
    """Return the optimizer of the weights and that of the logits."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    weights = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
    )
    choices = torch.optim.Adam(
        logits.parameters(), lr=recipe.choice_rate, betas=BETAS, weight_decay=recipe.choice_decay
    )
    return weights, choices


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a state of another search.

    Raises:
        CompressionError: A setting differs; the message names it.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise CompressionError(
                f"The state is of a search whose {name} is {found.get(name)}; here it is {value}"
            )


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Searching:
    """The moving parts of a search.

    Attributes:
        step: Steps done.
        recent: Both losses of the steps since the log's last row.
        rows: The log so far, `ROW` numbers each.
        model: Its weights are trained.
        logits: Of the choices.
        weights: Optimizer of the weights.
        choices: Optimizer of the logits.
        batches: Of the first and of the second half of the data.
        generator: Of every draw.
    """

    model: nn.Module
    logits: Logits
    weights: torch.optim.SGD
    choices: torch.optim.Adam
    batches: tuple[Batches, Batches]
    generator: torch.Generator
    step: int = 0
    recent: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    rows: list[tuple[float, ...]] = dataclasses.field(default_factory=list)

    @classmethod
    def begin(
        cls,
        model: nn.Module,
        logits: Logits,
        weights: torch.optim.SGD,
        choices: torch.optim.Adam,
        generator: torch.Generator,
        halves: Sequence[Indices],
        batch_size: int,
    ) -> Searching:
        """Return a search before its first step."""
        first, second = (
            Batches(len(half), min(batch_size, len(half)), generator) for half in halves
        )
        return cls(
            model=model,
            logits=logits,
            weights=weights,
            choices=choices,
            batches=(first, second),
            generator=generator,
        )

    def state(self, terms: Mapping[str, Any]) -> TrainingState:
        """Return the state between two steps, in tensors of its own."""
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            momentum = self.weights.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{name}"] = momentum
        for number, logits in enumerate(self.logits.parameters()):
            found[f"logits.{number}"] = logits
            for key, value in self.choices.state.get(logits, {}).items():
                found[f"adam.{number}.{key}"] = value
        for number, batches in enumerate(self.batches):
            found[f"order.{number}"] = batches.order
            found[f"place.{number}"] = torch.tensor(batches.place)
        found["recent"] = torch.tensor(self.recent, dtype=torch.float64).reshape(-1, 2)
        found["rows"] = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, ROW)
        found["generator"] = self.generator.get_state()
        found["torch_generator"] = torch.random.get_rng_state()
        layout = torch.contiguous_format
        return TrainingState(
            step=self.step,
            images=0,
            recent=(),
            points=(),
            terms=terms,
            tensors={k: v.detach().clone(memory_format=layout) for k, v in found.items()},
        )

    def load(self, state: TrainingState) -> None:
        """Go back to a state.

        Raises:
            CompressionError: It is of another model or of other choices, or misses something.
        """
        try:
            self.model.load_state_dict(state.part("model"))
            parameters = dict(self.model.named_parameters())
            for name, momentum in state.part("momentum").items():
                own = torch.empty_like(parameters[name]).copy_(momentum)
                self.weights.state[parameters[name]]["momentum_buffer"] = own
            saved = state.part("logits")
            with torch.no_grad():
                for number, logits in enumerate(self.logits.parameters()):
                    logits.copy_(saved[str(number)])
                    moments = state.part(f"adam.{number}")
                    if moments:
                        self.choices.state[logits] = {k: v.clone() for k, v in moments.items()}
            for number, batches in enumerate(self.batches):
                batches.order = state.tensors[f"order.{number}"].clone()
                batches.place = int(state.tensors[f"place.{number}"])
            self.recent = [(a, b) for a, b in state.tensors["recent"].tolist()]
            self.rows = [tuple(row) for row in state.tensors["rows"].tolist()]
            generators = state.tensors["generator"], state.tensors["torch_generator"]
        except (RuntimeError, KeyError) as error:
            raise CompressionError(
                f"The state of step {state.step} does not fit this search: {error}"
            ) from error
        self.step = state.step
        self.generator.set_state(generators[0])
        torch.random.set_rng_state(generators[1])
