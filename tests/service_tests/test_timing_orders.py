"""Leases of timing orders: each is answered once, whoever dies and however late."""

from __future__ import annotations

import dataclasses

import pytest

from compression.artifact import Digest
from service.db import device_agents, timing_orders
from service.db.device_agents import SILENT_S, StoredAgent
from service.db.session import Database
from service.db.timing_orders import (
    LEASE_S,
    LONGEST_S,
    MAX_TRIES,
    StoredOrder,
)
from service.db.timing_queue import PATIENCE_S, SqlTimingQueue
from service.device_state import OrderState
from service.errors import AgentRefused, AttemptStale, IllegalState, NameTaken, PoolMismatch
from tests.service_tests.boards import DEVICE, add_agent, job_with_trials, order_of, spec
from tests.service_tests.stored import Clock

TIMES = Digest("f" * 64)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pull(database: Database, agent: StoredAgent, clock: Clock) -> StoredOrder | None:
    with database.write() as session:
        return timing_orders.lease(session, agent, clock())


def pulled(database: Database, agent: StoredAgent, clock: Clock) -> StoredOrder:
    found = pull(database, agent, clock)
    assert found is not None
    return found


def finish(
    database: Database, order: StoredOrder, clock: Clock, failure: str | None = None
) -> StoredOrder:
    with database.write() as session:
        return timing_orders.finish(
            session,
            order.id,
            order.agent,
            order.attempt,
            times=None if failure else TIMES,
            readings=[],
            failure=failure,
            now=clock(),
        )


def test_the_same_order_asked_twice_is_one_and_is_answered_once(
    database: Database, clock: Clock
) -> None:
    job, (trial,) = job_with_trials(database, clock)
    agent = add_agent(database, "a", clock)
    queue = SqlTimingQueue(database, job, clock)
    order_id = queue.ask(order_of(trial))
    assert queue.ask(order_of(trial)) == order_id
    leased = pulled(database, agent, clock)
    assert (leased.id, leased.order) == (order_id, order_of(trial))
    assert pull(database, agent, clock) is None
    assert queue.answers([order_id]) == {}
    clock.advance(2.5)
    finish(database, leased, clock)
    # The next conductor asks again and finds the answer.
    again = SqlTimingQueue(database, job, clock)
    assert again.ask(order_of(trial)) == order_id
    answer = again.answers([order_id])[order_id]
    assert (answer.times, answer.seconds, answer.failure) == (TIMES, 2.5, None)
    with pytest.raises(AttemptStale, match="DONE"):
        finish(database, leased, clock)


def test_an_expired_lease_is_another_agents_and_the_old_attempt_is_stale(
    database: Database, clock: Clock
) -> None:
    job, (trial,) = job_with_trials(database, clock)
    first, second = (add_agent(database, name, clock) for name in "ab")
    SqlTimingQueue(database, job, clock).ask(order_of(trial))
    old = pulled(database, first, clock)
    clock.advance(LEASE_S - 1)
    assert pull(database, second, clock) is None
    clock.advance(1)
    new = pulled(database, second, clock)
    assert (new.id, new.tries) == (old.id, 2)
    assert new.attempt != old.attempt
    for late in (old, dataclasses.replace(old, attempt="")):
        with pytest.raises(AttemptStale, match="newer attempt"):
            finish(database, late, clock)
    assert finish(database, new, clock).state is OrderState.DONE


def test_a_late_result_counts_while_nobody_else_has_the_order(
    database: Database, clock: Clock
) -> None:
    job, (trial,) = job_with_trials(database, clock)
    agent = add_agent(database, "a", clock)
    queue = SqlTimingQueue(database, job, clock)
    order_id = queue.ask(order_of(trial))
    leased = pulled(database, agent, clock)
    clock.advance(3 * LEASE_S)
    assert queue.answers([order_id]) == {}
    assert finish(database, leased, clock).state is OrderState.DONE


def test_a_renewed_lease_holds_but_not_for_ever(database: Database, clock: Clock) -> None:
    job, (trial,) = job_with_trials(database, clock)
    first, second = (add_agent(database, name, clock) for name in "ab")
    SqlTimingQueue(database, job, clock).ask(order_of(trial))
    leased = pulled(database, first, clock)
    for _ in range(3):
        clock.advance(LEASE_S - 1)
        with database.write() as session:
            timing_orders.renew(session, leased.id, "a", leased.attempt, clock())
        assert pull(database, second, clock) is None
    clock.advance(LONGEST_S)
    with database.write() as session, pytest.raises(AttemptStale, match="more than 1803 s"):
        timing_orders.renew(session, leased.id, "a", leased.attempt, clock())


def test_an_order_that_ends_its_agents_is_given_up_and_can_be_asked_for_again(
    database: Database, clock: Clock
) -> None:
    job, (trial,) = job_with_trials(database, clock)
    agent = add_agent(database, "a", clock)
    queue = SqlTimingQueue(database, job, clock)
    order_id = queue.ask(order_of(trial))
    for _ in range(MAX_TRIES):
        pulled(database, agent, clock)
        clock.advance(LEASE_S)
        queue.answers([order_id])
    answer = queue.answers([order_id])[order_id]
    assert answer.failure == "agent 'a' fell silent, the last of 3 attempts"
    assert pull(database, agent, clock) is None
    assert queue.ask(order_of(trial)) == order_id
    assert finish(database, pulled(database, agent, clock), clock).state is OrderState.DONE


def test_a_failed_order_says_why(database: Database, clock: Clock) -> None:
    job, (trial,) = job_with_trials(database, clock)
    agent = add_agent(database, "a", clock)
    queue = SqlTimingQueue(database, job, clock)
    order_id = queue.ask(order_of(trial))
    finish(database, pulled(database, agent, clock), clock, "outputs differ by 0.5")
    assert queue.answers([order_id])[order_id].failure == "outputs differ by 0.5"


def test_agents_hold_no_more_than_their_quota(database: Database, clock: Clock) -> None:
    job, trials = job_with_trials(database, clock, 4)
    queue = SqlTimingQueue(database, job, clock)
    for trial in trials:
        queue.ask(order_of(trial))
    one, two = add_agent(database, "one", clock), add_agent(database, "two", clock, quota=2)
    held = [pull(database, agent, clock) for agent in (one, one, two, two, two)]
    assert [order is not None for order in held] == [True, False, True, True, False]
    assert len({order.id for order in held if order}) == 3
    assert held[0] is not None
    finish(database, held[0], clock)
    assert pull(database, one, clock) is not None


def test_jobs_take_turns(database: Database, clock: Clock) -> None:
    jobs = []
    for _ in range(2):
        job, trials = job_with_trials(database, clock, 2)
        jobs.append(job)
        for trial in trials:
            SqlTimingQueue(database, job, clock).ask(order_of(trial))
        clock.advance(1)
    agent = add_agent(database, "a", clock)
    served = []
    for _ in range(4):
        clock.advance(1)
        leased = pulled(database, agent, clock)
        served.append(leased.job_id)
        finish(database, leased, clock)
    assert served == [jobs[0], jobs[1], jobs[0], jobs[1]]


def test_pools_do_not_see_each_others_orders(database: Database, clock: Clock) -> None:
    job, (trial,) = job_with_trials(database, clock)
    queue = SqlTimingQueue(database, job, clock)
    queue.ask(order_of(trial))
    other = add_agent(database, "garage", clock, device="board/garage")
    assert pull(database, other, clock) is None
    assert queue.ask(order_of(trial, device="board/garage")) is not None
    assert pulled(database, other, clock).order.device == "board/garage"


def test_a_new_life_gives_back_what_the_old_one_held(database: Database, clock: Clock) -> None:
    job, (trial,) = job_with_trials(database, clock)
    agent = add_agent(database, "a", clock)
    SqlTimingQueue(database, job, clock).ask(order_of(trial))
    old = pulled(database, agent, clock)
    with database.write() as session:
        timing_orders.release(session, "a", clock())
    with pytest.raises(AttemptStale):
        finish(database, old, clock)
    assert pulled(database, agent, clock).id == old.id


def test_what_an_ended_job_has_open_is_withdrawn(database: Database, clock: Clock) -> None:
    job, trials = job_with_trials(database, clock, 2)
    agent = add_agent(database, "a", clock)
    queue = SqlTimingQueue(database, job, clock)
    ids = [queue.ask(order_of(trial)) for trial in trials]
    leased = pulled(database, agent, clock)
    with database.write() as session:
        timing_orders.withdraw(session, job, clock())
    assert {a.failure for a in queue.answers(ids).values()} == {"its job has ended"}
    with pytest.raises(AttemptStale):
        finish(database, leased, clock)


def test_an_order_that_no_agent_asks_for_fails(database: Database, clock: Clock) -> None:
    job, (trial,) = job_with_trials(database, clock)
    add_agent(database, "a", clock)
    queue = SqlTimingQueue(database, job, clock)
    order_id = queue.ask(order_of(trial))
    clock.advance(PATIENCE_S)
    assert queue.answers([order_id]) == {}
    clock.advance(1)
    queue.answers([order_id])
    assert queue.answers([order_id])[order_id].failure == "no agent asked for work for 600 s"


def test_boards_of_one_pool_must_be_alike(database: Database, clock: Clock) -> None:
    add_agent(database, "a", clock)
    for other, what in (
        (spec(threads=2), r"'b' has threads 2, and 'a' has 1"),
        (spec(runtime="openvino"), r"'b' has the runtime 'openvino', and 'a' has 'onnxruntime'"),
        (spec(cpu="Cortex-A53"), r"'b' has the CPU 'Cortex-A53', and 'a' has 'Cortex-A76'"),
    ):
        with database.write() as session, pytest.raises(PoolMismatch, match=what):
            device_agents.register(session, name="b", spec=other, now=clock())
    with database.write() as session:
        device_agents.register(session, name="b", spec=spec(), now=clock())
        assert [a.name for a in device_agents.everything(session, DEVICE)] == ["a", "b"]


def test_a_living_agents_name_is_its_own(database: Database, clock: Clock) -> None:
    with database.write() as session:
        _, token = device_agents.register(session, name="a", spec=spec(), now=clock())
        assert device_agents.register(session, name="a", spec=spec(), token=token, now=clock())
        with pytest.raises(NameTaken):
            device_agents.register(session, name="a", spec=spec(), token="guess", now=clock())
        device_agents.verify(session, "a", token, now=clock())
        clock.advance(SILENT_S)
        _, newer = device_agents.register(session, name="a", spec=spec(), now=clock())
        with pytest.raises(AgentRefused):
            device_agents.verify(session, "a", token, now=clock())
        device_agents.verify(session, "a", newer, now=clock())


def test_a_draining_agent_gets_nothing_but_ends_what_it_holds(
    database: Database, clock: Clock
) -> None:
    job, trials = job_with_trials(database, clock, 2)
    agent = add_agent(database, "a", clock, quota=2)
    queue = SqlTimingQueue(database, job, clock)
    for trial in trials:
        queue.ask(order_of(trial))
    leased = pulled(database, agent, clock)
    with database.write() as session:
        drained = device_agents.drain(session, "a")
    with pytest.raises(IllegalState, match="draining"):
        pull(database, drained, clock)
    assert finish(database, leased, clock).state is OrderState.DONE
