"""Process: starts the API and the conductor, and starts them again when they die."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from service.settings import Settings

logger = logging.getLogger("service.serve")

POLL_S = 0.5
STOP_GRACE_S = 8.0
"""How long a child may take to end by itself before it is killed."""
RESTART_PAUSE_S = 1.0


PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, even by kill -9 (Linux)."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A process that is kept alive."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str]) -> None:
        self.name = name
        self._command = command
        self._env = env
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # Its own session, so that stopping it stops what it started, too.
        return subprocess.Popen(
            self._command, env=self._env, start_new_session=True, preexec_fn=_die_with_parent
        )

    def keep_alive(self) -> None:
        """Start the process again if it ended."""
        code = self._process.poll()
        if code is not None:
            logger.warning("%s ended with code %s; starting it again", self.name, code)
            self._signal(signal.SIGKILL)
            time.sleep(RESTART_PAUSE_S)
            self._process = self._start()

    def stop(self) -> None:
        """End the process and everything it started."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            logger.warning("%s did not end in %s s; killing it", self.name, STOP_GRACE_S)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the children's environment: the given options as settings."""
    env = dict(os.environ)
    env.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    env.setdefault("OMP_NUM_THREADS", "1")
    data: Path = arguments.data.resolve()
    env["PARETOPRESS_DATA_DIR"] = str(data)
    env.setdefault("PARETOPRESS_DATABASE_URL", f"sqlite:///{data / 'paretopress.db'}")
    env.setdefault("PARETOPRESS_STORE_URL", (data / "blobs").as_uri())
    env["PARETOPRESS_HOST"] = arguments.host
    env["PARETOPRESS_PORT"] = str(arguments.port)
    if arguments.code is not None:
        env["PARETOPRESS_CODE_DIR"] = str(arguments.code.resolve())
    return env


def main(argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM, SIGINT, or the end of the process named by `--parent`."""
    parser = argparse.ArgumentParser(prog="python -m service.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--data", type=Path, default=Path("paretopress-data"))
    parser.add_argument("--code", type=Path, default=None, help="folder of the user's own code")
    parser.add_argument("--parent", type=int, default=None, help="stop when this process ends")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    arguments.data.mkdir(parents=True, exist_ok=True)
    env = environment(arguments)
    os.environ.update(env)
    Settings()  # Refuses what no child could run with, before any is started.
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    children = [
        Child("api", [sys.executable, "-m", "service.api_process"], env),
        Child("conductor", [sys.executable, "-m", "service.conductor"], env),
    ]
    try:
        while not stopping.wait(POLL_S):
            if arguments.parent is not None and not _alive(arguments.parent):
                logger.info("process %s ended; stopping with it", arguments.parent)
                break
            for child in children:
                child.keep_alive()
    finally:
        for child in children:
            child.stop()


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
