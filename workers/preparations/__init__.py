"""Long trainings that agents order: by kind, the function that carries one out."""

from __future__ import annotations

from collections.abc import Mapping

from search.trial import PrepareKind

PREPARATIONS: Mapping[PrepareKind, str] = {
    "finetune": "workers.preparations.finetune:prepare",
    "admm": "workers.preparations.admm:prepare",
    "pruning_net": "workers.preparations.pruning_net:prepare",
    "supernet": "workers.preparations.supernet:prepare",
    "tas": "workers.preparations.tas:prepare",
}
"""`module:function` with the signature `(preparation.Order) -> preparation.Prepared`."""
