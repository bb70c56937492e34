"""The one place where a process reads its environment."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """What an operator may set, as `PARETOPRESS_<NAME>` in the environment or as an argument.

    Attributes:
        data_dir: Folder of everything that this server keeps on local disk.
        database_url: SQLAlchemy URL; SQLite in `data_dir` when empty.
        store_url: Artifact store, `file:///folder` or `s3://bucket/prefix`; a folder in
            `data_dir` when empty.
        host: Address the server listens on. Beyond loopback only with `require_api_key`.
        port: TCP port.
        require_api_key: Whether requests must carry `Authorization: Bearer <key>`.
        allowed_hosts: Names under which clients may reach the server (its `Host` header), so
            that a foreign page cannot rebind its own name to this machine; empty accepts any
            when bound beyond loopback, and the loopback names otherwise.
        code_dir: Folder of the operator's own Python code that models may name; None switches
            such models off. Imported in workers alone; loopback only.
        data_roots: Folders on the server's disk whose data users may name by path; none by
            default. In the environment, a JSON list.
        ray_address: Ray cluster to connect to; None starts a local one.
        lease_s: Seconds after which a silent conductor loses its job.
        profile_models: Whether a job's model is profiled site by site beside the job: at low
            priority, for a minute, once per model and data.
        max_upload_bytes: Largest weights or data file.
        max_body_bytes: Largest JSON body.
        max_trials: Most trials one job may ask for.
        max_wall_s: Longest search phase one job may ask for.
        max_parallelism: Most trials of one job at once.
        max_constraints: Most constraints of one job.
        max_event_streams: Most event streams open at once.
        event_poll_s: Seconds between two looks at the event table, per open stream.
        event_ping_s: Seconds of silence after which a stream sends a comment.
        idempotency_ttl_s: How long the answer to an `Idempotency-Key` is kept.
        log_format: `text` for people, `json` for machines.
        log_level: Of the standard library's logging.
    """

    model_config = SettingsConfigDict(
        env_prefix="PARETOPRESS_", extra="forbid", frozen=True, validate_default=True
    )

    data_dir: Path = Path("paretopress-data")
    database_url: str = ""
    store_url: str = ""
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    require_api_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    code_dir: Path | None = None
    data_roots: tuple[Path, ...] = ()
    ray_address: str | None = None
    lease_s: float = Field(default=30.0, gt=0)
    profile_models: bool = True
    max_upload_bytes: int = Field(default=2048 * MIB, ge=1)
    max_body_bytes: int = Field(default=MIB, ge=1)
    max_trials: int = Field(default=10_000, ge=1)
    max_wall_s: float = Field(default=7 * 24 * 3600.0, gt=0)
    max_parallelism: int = Field(default=64, ge=1)
    max_constraints: int = Field(default=32, ge=1)
    max_event_streams: int = Field(default=200, ge=1)
    event_poll_s: float = Field(default=0.5, gt=0)
    event_ping_s: float = Field(default=10.0, gt=0, le=15.0)
    idempotency_ttl_s: float = Field(default=24 * 3600.0, gt=0)
    log_format: str = Field(default="text", pattern="^(text|json)$")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    @model_validator(mode="before")
    @classmethod
    def _derive_urls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        folder = Path(given.get("data_dir") or cls.model_fields["data_dir"].default).absolute()
        return {
            **given,
            "data_dir": folder,
            "database_url": given.get("database_url") or f"sqlite:///{folder / 'paretopress.db'}",
            "store_url": given.get("store_url") or (folder / "store").as_uri(),
        }

    @model_validator(mode="after")
    def _refuse_open_doors(self) -> Settings:
        if is_loopback(self.host):
            return self
        if not self.require_api_key:
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach, and require_api_key is "
                "off: set PARETOPRESS_REQUIRE_API_KEY=true, or bind to 127.0.0.1"
            )
        if self.code_dir is not None:
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach, and code_dir is "
                f"{str(self.code_dir)!r}: models that name Python code are for loopback only"
            )
        return self

    @property
    def incoming_dir(self) -> Path:
        """Folder in which uploads land before they are checked and stored."""
        return self.data_dir / "incoming"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names that requests may carry; `*` accepts any."""
        if self.allowed_hosts:
            return self.allowed_hosts
        return ("localhost", "127.0.0.1", "[::1]") if is_loopback(self.host) else ("*",)
