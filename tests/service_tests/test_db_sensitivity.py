"""Profiles of models are computed once, by one process at a time, and survive its death."""

from __future__ import annotations

import dataclasses

from compression.artifact import Preprocessing
from service.db import sensitivity
from service.db.sensitivity import MAX_TRIES, ProfileKey
from service.db.session import Database
from tests.service_tests.stored import DATASET, MODEL, Clock

KEY = ProfileKey.of(MODEL, DATASET, "mdl_1")
LEASE_S = 60.0


def claim(database: Database, owner: str, clock: Clock) -> str:
    with database.write() as session:
        return sensitivity.claim(session, KEY, owner, LEASE_S, now=clock())


def state(database: Database) -> str:
    with database.read() as session:
        return sensitivity.get(session, KEY).state


def test_a_profile_is_computed_once(database: Database) -> None:
    clock = Clock()
    assert state(database) == "waiting"
    assert claim(database, "first", clock) == "mine"
    assert claim(database, "second", clock) == "taken"
    assert state(database) == "computing"
    with database.write() as session:
        sensitivity.put(session, KEY, {"effects": [], "images": 500})
    assert claim(database, "second", clock) == "done"
    with database.read() as session:
        stored = sensitivity.get(session, KEY)
    assert stored.state == "ready"
    assert stored.profile == {"effects": [], "images": 500}


def test_what_cannot_be_profiled_is_not_tried_again(database: Database) -> None:
    clock = Clock()
    claim(database, "first", clock)
    with database.write() as session:
        sensitivity.refuse(session, KEY, "there are 0 calibration images")
    clock.advance(10 * LEASE_S)
    assert claim(database, "second", clock) == "done"
    with database.read() as session:
        stored = sensitivity.get(session, KEY)
    assert (stored.state, stored.problem) == ("failed", "there are 0 calibration images")


def test_a_dead_computation_is_taken_over_a_few_times(database: Database) -> None:
    clock = Clock()
    for number in range(MAX_TRIES):
        assert claim(database, f"owner {number}", clock) == "mine"
        clock.advance(LEASE_S - 1)
        assert claim(database, "early", clock) == "taken"
        clock.advance(2)
    assert claim(database, "late", clock) == "done"
    with database.read() as session:
        problem = sensitivity.get(session, KEY).problem
    assert problem == f"Its computations died {MAX_TRIES} times; {MAX_TRIES} is the limit"


def test_a_released_computation_is_tried_again(database: Database) -> None:
    clock = Clock()
    claim(database, "first", clock)
    with database.write() as session:
        sensitivity.release(session, KEY)
    assert state(database) == "waiting"
    assert claim(database, "second", clock) == "mine"


def test_a_late_result_changes_nothing(database: Database) -> None:
    claim(database, "first", Clock())
    with database.write() as session:
        sensitivity.put(session, KEY, {"effects": [1]})
        sensitivity.put(session, KEY, {"effects": [2]})
        sensitivity.refuse(session, KEY, "too late")
    with database.read() as session:
        assert sensitivity.get(session, KEY).profile == {"effects": [1]}


def test_a_key_names_weights_preprocessing_and_data() -> None:
    other = dataclasses.replace(MODEL, preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0)))
    data = dataclasses.replace(DATASET, format="folders")
    keys = {
        KEY,
        ProfileKey.of(other, DATASET, "mdl_1"),
        ProfileKey.of(MODEL, data, "mdl_1"),
    }
    assert len(keys) == 3
    assert ProfileKey.of(MODEL, DATASET, "mdl_2") == KEY


def test_a_builder_that_brings_its_weights_is_known_by_its_model() -> None:
    built = dataclasses.replace(MODEL, weights=None, format="python")
    assert ProfileKey.of(built, DATASET, "mdl_1") != ProfileKey.of(built, DATASET, "mdl_2")
