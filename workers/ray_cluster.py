"""This process's connection to Ray: started here, or someone else's cluster; renewed when dead."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import ray

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 200 << 20
"""Only plain data crosses; models and images come from the artifact store."""

ESSENTIAL = ("gcs_server", "raylet")
"""Processes of a local Ray without which it does nothing."""

CONNECT_TIMEOUT_S = 2.0

START_PAUSES_S = (1.0, 5.0)
"""Before the second and third try to start: ports and folders of a dead Ray take time to go."""


class RayCluster:
    """Ray, of which a process has one at a time.

    A local Ray listens on 127.0.0.1, shows no dashboard, reports nothing home and dies with this
    process.

    Attributes:
        slots: CPUs that a local Ray offers; each attempt takes one.
        address: `host:port` of an existing cluster; None starts a local one.
        temp_dir: Ray's session folder when local, absolute and short (Unix sockets are made in
            it); Ray's own default when None.
    """

    def __init__(
        self, slots: int, *, address: str | None = None, temp_dir: Path | None = None
    ) -> None:
        self.slots = slots
        self.address = address
        self.temp_dir = temp_dir

    def ensure(self) -> None:
        """Start or attach, unless connected to a living cluster; a dead one is cleared away.

        Raises:
            ConnectionError: Nothing answers at `address`, or Ray does not start, also after
                some tries.
        """
        if self.alive():
            return
        self.stop()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # By default Ray runs workers at a low priority: what is timed there would yield to all.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if self.address is None:
            options |= {
                "num_cpus": self.slots,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "object_store_memory": OBJECT_STORE_BYTES,
            }
            if self.temp_dir is not None:
                options["_temp_dir"] = str(self.temp_dir)
        else:
            options["address"] = self.address
        # Ray takes SIGTERM for itself; whoever started this process has its own use for it.
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM) if main else None
        try:
            _init(options)
        finally:
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)
        logger.info("Ray is connected", extra={"action": "ray_connected"})

    def alive(self) -> bool:
        """Whether this process is connected to a cluster whose head lives."""
        if not ray.is_initialized():
            return False
        if any(process.poll() is not None for process in self.processes().values()):
            return False
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S):
                return True
        except OSError:
            return False

    def processes(self) -> dict[str, Any]:
        """Return the essential processes that this process started, `Popen` by name."""
        # No public API says which processes a local Ray has.
        node = ray._private.worker._global_node
        if node is None:
            return {}
        started = node.all_processes
        return {name: started[name][0].process for name in ESSENTIAL if name in started}

    def stop(self) -> None:
        """Disconnect; a local Ray ends."""
        if ray.is_initialized():
            ray.shutdown()


def _init(options: dict[str, Any]) -> None:
    """Call `ray.init`, some times if need be."""
    for pause_s in (*START_PAUSES_S, None):
        try:
            ray.init(**options)
        except (OSError, RuntimeError) as error:
            ray.shutdown()
            if pause_s is None:
                raise ConnectionError(f"Ray did not start: {error}") from error
            logger.warning("Ray did not start; trying again", exc_info=True)
            time.sleep(pause_s)
        else:
            return
