"""What can go wrong on the client's side; messages name the thing, the value and the limit."""

from __future__ import annotations


class ClientError(Exception):
    """The client could not do what was asked."""


class ServerUnreachable(ClientError):
    """No server answered, or the connection kept breaking."""


class JobFailed(ClientError):
    """The job ended without an answer; the message says why."""


class DownloadDamaged(ClientError):
    """A downloaded file is not what the server says it is, or its archive is not safe to unpack."""


class JobFileInvalid(ClientError, ValueError):
    """The job file cannot be read as JSON or TOML, or is not a table."""


class EmbeddedServerFailed(ClientError):
    """The embedded server is not installed, ended early or did not get ready in time."""
