"""A real server for tests: its processes can be found and killed one by one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from paretopress import Client
from paretopress.embedded import free_port

READY_S = 120.0
LEASE_S = 5


def processes(*words: str) -> dict[int, str]:
    """Return pid and command line of living processes whose command line has all the words."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if command and all(word in command for word in words):
                found[int(entry.name)] = command
    return found


def descendants(root: int) -> set[int]:
    """Return the pids of all processes below `root`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    below = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in below} - below
        if not more:
            return below - {root}
        below |= more


def new_key(folder: Path) -> str:
    """Make an API key in the database of a server that keeps its things in `folder`."""
    environment = {**os.environ, "PARETOPRESS_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "service.keys", "create", "test"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return made.stdout.strip()


class Server:
    """`service.serve` on a free port, everything it keeps under one folder.

    Profiling a model beside its job disturbs timings, which then take longer: off unless asked for.
    Beyond loopback it asks for an API key, which is `api_key`.
    """

    def __init__(
        self,
        folder: Path,
        code: Path | None = None,
        host: str = "127.0.0.1",
        profile_models: bool = False,
    ) -> None:
        self.folder = folder
        self.url = f"http://{host}:{free_port()}"
        command = [sys.executable, "-m", "service.serve", "--data", str(folder), "--host", host]
        command += ["--port", self.url.rpartition(":")[2], "--parent", str(os.getpid())]
        if code is not None:
            command += ["--code", str(code)]
        folder.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PARETOPRESS_")}
        environment["PARETOPRESS_LEASE_S"] = str(LEASE_S)
        environment["PARETOPRESS_PROFILE_MODELS"] = str(profile_models)
        self.api_key = None
        if host != "127.0.0.1":
            environment["PARETOPRESS_REQUIRE_API_KEY"] = "true"
            self.api_key = new_key(folder)
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Return when the API answers."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text()[-4000:])

    def kill(self, *words: str) -> int:
        """Kill -9 our processes whose command line has all the words; return how many."""
        ours = descendants(self.process.pid)
        # Ray's daemons may have been adopted by init: they are ours by their session folder.
        targets = [p for p, c in processes(*words).items() if p in ours or str(self.folder) in c]
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(targets)

    def stop(self) -> None:
        """End everything."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for pid in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()


@contextlib.contextmanager
def serving(
    folder: Path,
    code: Path | None = None,
    host: str = "127.0.0.1",
    profile_models: bool = False,
) -> Iterator[tuple[Server, Client]]:
    """Run a server and a client of it."""
    server = Server(folder, code, host, profile_models)
    try:
        server.wait_until_ready()
        with Client(server.url, api_key=server.api_key) as client:
            yield server, client
    finally:
        server.stop()


def wait_for(what: Callable[[], bool], timeout_s: float, message: str) -> None:
    """Return when `what` is true."""
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(message)
        time.sleep(0.1)
