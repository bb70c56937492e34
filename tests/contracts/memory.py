"""The laws of every `workers.memory.Memory`; subclass with a fixture `memory`."""

from __future__ import annotations

import dataclasses

from compression.plan import Plan
from search.measurement import Infeasible, Measured
from tests.contracts.ledger import ONNX, measurement, plan_of
from workers.memory import Memory, MemoryKey, Remembered

HERE, THERE = "a" * 64, "b" * 64


def key_of(plan: Plan, circumstances: str = HERE) -> MemoryKey:
    """Return the name of an evaluation of the plan."""
    return MemoryKey(circumstances, plan.digest)


def entry(keep: int) -> Remembered:
    """Return an evaluation with all that one can have."""
    return Remembered(
        plan=plan_of(keep),
        outcome=Measured(measurement(keep / 100), {"top1": keep / 100}),
        artifacts={"recovered": ONNX},
        devices={"local/onnxruntime": "c" * 64},
        trial_id=f"trl_{keep:016d}",
    )


def put(memory: Memory, *keeps: int, circumstances: str = HERE) -> None:
    """Store evaluations, one after the other."""
    for keep in keeps:
        memory.put(key_of(plan_of(keep), circumstances), entry(keep))


class MemoryContract:
    """Every memory keeps these."""

    def test_knows_nothing_at_first(self, memory: Memory) -> None:
        assert memory.find(key_of(plan_of(1))) is None
        assert list(memory.relevant([HERE], 10)) == []

    def test_gives_back_what_was_put_exactly(self, memory: Memory) -> None:
        impossible = Remembered(plan=plan_of(2), outcome=Infeasible("refused"), trial_id="trl_2")
        put(memory, 1)
        memory.put(key_of(plan_of(2)), impossible)
        assert memory.find(key_of(plan_of(1))) == entry(1)
        assert memory.find(key_of(plan_of(2))) == impossible

    def test_plan_and_circumstances_name_an_evaluation(self, memory: Memory) -> None:
        put(memory, 1)
        assert memory.find(key_of(plan_of(2))) is None
        assert memory.find(key_of(plan_of(1), THERE)) is None

    def test_the_newer_one_of_a_name_is_kept(self, memory: Memory) -> None:
        put(memory, 1)
        newer = dataclasses.replace(entry(1), trial_id="trl_newer", artifacts={})
        memory.put(key_of(plan_of(1)), newer)
        assert memory.find(key_of(plan_of(1))) == newer
        assert list(memory.relevant([HERE], 10)) == [newer]

    def test_what_is_relevant_comes_newest_first(self, memory: Memory) -> None:
        put(memory, 3, 1, 2)
        put(memory, 4, circumstances=THERE)
        put(memory, 5, circumstances="c" * 64)
        put(memory, 1)
        found = memory.relevant([HERE, THERE], 10)
        assert sorted(known.trial_id for known in found) == [
            entry(k).trial_id for k in (1, 2, 3, 4)
        ]
        assert found[0] == entry(1)
        assert list(memory.relevant([HERE], 2)) == [entry(1), entry(2)]
        assert list(memory.relevant([], 10)) == []
