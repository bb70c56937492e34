"""One way to log for every process: a sentence, stable keys, and the request it belongs to."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import re
import secrets

from service.settings import Settings

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
"""Identifier of the HTTP request that is being answered; None outside of one."""

# What every LogRecord has of itself; anything beyond came through `extra`.
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")


def new_request_id(given: str | None) -> str:
    """Return the caller's identifier where it is short and plain, else a new one."""
    return given if given and _ACCEPTED.fullmatch(given) else f"req_{secrets.token_hex(8)}"


def _extras(record: logging.LogRecord) -> dict[str, object]:
    extras = {
        key: value for key, value in vars(record).items() if key not in _PLAIN and key[0] != "_"
    }
    if (current := request_id.get()) is not None:
        extras["request_id"] = current
    return extras


class TextFormatter(logging.Formatter):
    """`time level logger sentence key=value ...`, one line, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        head, _, trace = super().format(record).partition("\n")
        pairs = " ".join(f"{key}={value}" for key, value in _extras(record).items())
        return head + (f" [{pairs}]" if pairs else "") + (f"\n{trace}" if trace else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(settings: Settings) -> None:
    """Set up the root logger of this process as the operator wants it."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if settings.log_format == "json"
        else TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
