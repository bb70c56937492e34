"""Log lines: one sentence, its keys, and the request it belongs to."""

from __future__ import annotations

import contextvars
import json
import logging
import sys

import pytest

from service.logs import JsonFormatter, TextFormatter, new_request_id, request_id


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "tests"})
    vars(made).update(extra)
    return made


def in_request(formatter: logging.Formatter, made: logging.LogRecord) -> str:
    def run() -> str:
        request_id.set("req_1")
        return formatter.format(made)

    return contextvars.copy_context().run(run)


def test_json_lines_carry_keys_and_the_request() -> None:
    line = json.loads(in_request(JsonFormatter(), record("job claimed", action="claim", job="j1")))
    assert line["message"] == "job claimed"
    assert line["action"] == "claim"
    assert line["job"] == "j1"
    assert line["request_id"] == "req_1"
    assert line["time"].endswith("+00:00")


def test_text_lines_carry_keys_before_the_trace() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        made = record("job failed", job="j1", exc_info=sys.exc_info())
    first, _, rest = TextFormatter("%(levelname)s %(message)s").format(made).partition("\n")
    assert first == "INFO job failed [job=j1]"
    assert "KeyError" in rest


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 65, "a\nb"])
def test_request_ids_that_are_not_plain_are_replaced(given: str | None) -> None:
    assert new_request_id(given).startswith("req_")
    assert new_request_id("mine.1") == "mine.1"
