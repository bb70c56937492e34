"""Finished rows of a comparison, kept so that none is run twice, and what they say together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.measurement import Interval
from workers.meters.accuracy import accuracy_drop

Row = dict[str, Any]
OURS, PEER = "ours", "peer"


@dataclasses.dataclass(frozen=True)
class FinishedRows:
    """Rows in `FOLDER/STEM.jsonl`, with held-out logits beside them.

    A row is known by its part, its name and the conditions it was run under.

    Attributes:
        folder: Exists.
        stem: Of the files' names.
    """

    folder: Path
    stem: str = "peers"

    def row(
        self,
        part: str,
        name: str,
        conditions: Mapping[str, Any],
        make: Callable[[], tuple[Row, NDArray[np.float32] | None]],
    ) -> Row:
        """Return the row, made only if it is not there yet.

        Args:
            part: Of the comparison.
            name: Of the row within it.
            conditions: What else the figures depend on.
            make: Returns figures and the outputs on held-out data, if there are any.
        """
        key = _key(part, name, conditions)
        known = self._known().get(key)
        if known is not None:
            print(f"{part}: {name}: kept from an earlier run", flush=True)
            return known
        figures, logits = make()
        row = {"name": name, **figures, "key": key}
        if logits is not None:
            np.save(self.folder / f"{self.stem}-{key}.npy", logits)
        line = json.dumps({"key": key, "part": part, "conditions": dict(conditions), "row": row})
        with (self.folder / f"{self.stem}.jsonl").open("a") as file:
            file.write(line + "\n")
        print(f"{part}: {json.dumps(row)}", flush=True)
        return row

    def logits(self, row: Row) -> NDArray[np.float32]:
        """Return a row's outputs on held-out data."""
        found: NDArray[np.float32] = np.load(self.folder / f"{self.stem}-{row['key']}.npy")
        return found

    def _known(self) -> dict[str, Row]:
        path = self.folder / f"{self.stem}.jsonl"
        found: dict[str, Row] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # A run that was killed while it wrote left half a line.
            found[entry["key"]] = entry["row"]
        return found


def _key(part: str, name: str, conditions: Mapping[str, Any]) -> str:
    text = json.dumps([part, name, dict(conditions)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Verdict:
    """What our side wins and loses, and where the two cannot be told apart."""

    def __init__(self) -> None:
        self.wins: list[str] = []
        self.loses: list[str] = []
        self.level: list[str] = []

    def gain(self, text: str, gain: Interval) -> None:
        """Add a comparison by the interval of our gain; level if it holds 0."""
        told = f"{text}: {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        (self.wins if gain.low > 0 else self.loses if gain.high < 0 else self.level).append(told)

    def smaller(self, text: str, ours: float, theirs: float) -> None:
        """Add a comparison of exact sizes."""
        where = self.wins if ours < theirs else self.loses if ours > theirs else self.level
        where.append(f"{text}: {ours:g} against {theirs:g}")

    def apart(self, text: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        """Add a comparison of measured ratios, `value, low, high`; smaller is better."""
        where = self.level
        if ours[2] < theirs[1]:
            where = self.wins
        elif theirs[2] < ours[1]:
            where = self.loses
        where.append(f"{text}: {ours[0]:.3f} against {theirs[0]:.3f}")

    def to_json(self) -> dict[str, list[str]]:
        """Return the three lists."""
        return {"wins": self.wins, "loses": self.loses, "level": self.level}


def top1_gain(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], known: NDArray[np.int64]
) -> Interval:
    """Return by how many points of top-1 ours is better, paired."""
    drop = accuracy_drop(ours, theirs, known)
    return Interval(value=-100 * drop.value, low=-100 * drop.high, high=-100 * drop.low)
