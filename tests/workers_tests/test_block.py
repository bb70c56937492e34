"""One block: drawn roles, warm-up, and two regimes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.workers_tests.machines import Machine
from workers.meters.block import BURST_DISCARDED, BlockPlan, run_block, warm_up


def plan(seed: int = 0, until: float = 1e9, rounds: int = 10, burst: int = 5) -> BlockPlan:
    return BlockPlan(seed=seed, until=until, rounds=rounds, burst=burst)


def test_who_is_loaded_first_is_drawn() -> None:
    first = []
    for seed in range(200):
        machine = Machine()
        machine.blocks(0.5)(plan(seed))
        first.append(machine.order[0])
    assert 70 <= first.count("load candidate") <= 130


def test_swapping_equal_models_only_swaps_their_times() -> None:
    """What makes the sign of a log-ratio a fair coin: the schedule knows places, not roles."""
    by_place = []
    for place in (0, 1):
        # Of two loads, the one in this place is slower.
        ratios = []
        factors = [1.1, 1.0] if place == 0 else [1.0, 1.1]
        for seed in range(40):
            machine = Machine(placement=factors.__getitem__)
            ratios.append(machine.blocks(1.0)(plan(seed)).log_ratio)
        by_place.append(np.array(ratios))
    assert by_place[0] == pytest.approx(-by_place[1])
    assert set(np.round(by_place[0], 6)) == {round(math.log(1.1), 6), round(-math.log(1.1), 6)}


def test_a_block_has_rounds_in_turns_and_then_bursts() -> None:
    machine = Machine()
    block = machine.blocks(0.5)(plan(rounds=30))
    calls = [name for name in machine.order if not name.startswith("load")]
    rounds = calls[2 * block.warmup_calls :][:60]
    pairs = list(zip(rounds[::2], rounds[1::2], strict=True))
    assert all(set(pair) == {"candidate", "baseline"} for pair in pairs)
    assert 5 <= sum(pair[0] == "candidate" for pair in pairs) <= 25
    bursts = calls[2 * block.warmup_calls + 60 :]
    half = BURST_DISCARDED + 5
    assert [len(set(bursts[:half])), len(set(bursts[half:])), len(bursts)] == [1, 1, 2 * half]
    assert block.log_ratio == pytest.approx(math.log(0.5))
    assert block.hot_log_ratio == pytest.approx(math.log(0.5))
    assert block.load_s == pytest.approx(0.02)


def test_a_block_keeps_to_its_time() -> None:
    machine = Machine(lambda _: 10.0)
    block = machine.blocks(1.0)(plan(until=1.0, rounds=1000, burst=1000))
    assert 0.9 <= machine.clock() <= 1.05
    assert len(block.hot_candidate_ms) == len(block.hot_baseline_ms) > 0
    assert 3 < len(block.candidate_ms) < 1000


@pytest.mark.parametrize("until", [0.0, 0.1])
def test_without_time_three_rounds_are_left(until: float) -> None:
    block = Machine(lambda _: 10.0).blocks(1.0)(plan(until=until))
    assert len(block.candidate_ms) == 3
    assert block.warmup_calls <= 2
    assert len(block.hot_candidate_ms) == 0
    assert block.hot_log_ratio is None


def test_models_are_let_go_when_the_block_ends() -> None:
    alive = []

    class Model:
        def __init__(self) -> None:
            alive.append(1)

        def __call__(self) -> float:
            return 1.0

        def __del__(self) -> None:
            alive.pop()

    run_block(Model, Model, plan())
    assert alive == []


def test_warming_up_goes_on_until_nothing_gets_faster() -> None:
    machine = Machine(lambda now_ms: 1 + 4 * math.exp(-now_ms / 50))
    pair = [machine.model(name, 1.0)() for name in ("c", "b")]
    calls = warm_up(pair, clock=machine.clock, until=1e9)
    assert pair[0]() < 1.2
    assert 20 <= calls <= 100
    still = Machine()
    pair = [still.model(name, 1.0)() for name in ("c", "b")]
    assert warm_up(pair, clock=still.clock, until=1e9) == 8
    assert warm_up(pair, clock=still.clock, until=0.0) == 1
