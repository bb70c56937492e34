"""The embedded server: everything on this machine, started and stopped by the caller."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from paretopress.client import Client
from paretopress.errors import EmbeddedServerFailed

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
# Importing torch and starting Ray take some seconds on a quiet machine, a minute on a busy one.
READY_TIMEOUT_S = 180.0
READY_POLL_S = 0.2
# A conductor that was told to stop writes down what it has; a killed one loses nothing either.
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 20
SERVER_PARTS = ("fastapi", "uvicorn", "sqlalchemy", "torch", "ray", "onnxruntime")


def missing_server_parts() -> list[str]:
    """Return the packages of the server extra that are not installed."""
    return [name for name in SERVER_PARTS if importlib.util.find_spec(name) is None]


def serve_command(
    *, host: str, port: int, data: Path, code: Path | None = None, parent: int | None = None
) -> list[str]:
    """Return the command that runs a server.

    Args:
        host: Address to listen on.
        port: TCP port.
        data: Folder of everything the server keeps.
        code: Folder of the user's own Python code; None switches own code off.
        parent: Process whose end ends the server too; None outlives its starter.

    Raises:
        EmbeddedServerFailed: The server extra is not installed.
    """
    missing = missing_server_parts()
    if missing:
        raise EmbeddedServerFailed(
            f"The server needs {', '.join(missing)}. Install them with: "
            "pip install 'paretopress[server]'"
        )
    command = [sys.executable, "-m", "service.serve", "--host", host, "--port", str(port)]
    command += ["--data", str(data.absolute())]
    if code is not None:
        command += ["--code", str(code.absolute())]
    if parent is not None:
        command += ["--parent", str(parent)]
    return command


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedServer:
    """A server process group of ours; it ends with `stop`, or with this process.

    Args:
        data: Folder of everything the server keeps; made where it does not exist. The server's
            log is `server.log` in it.
        code: Folder of the user's own Python code.
        port: TCP port on loopback; 0 takes a free one.
    """

    def __init__(self, *, data: Path, code: Path | None = None, port: int = 0) -> None:
        self.data = data
        self.log_path = data / "server.log"
        self._code = code
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Root of the server."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Leader of the server's process group while it runs."""
        return self._process.pid if self._process else None

    def start(self, *, outlive: bool = False) -> None:
        """Start the server and return when it is ready.

        Args:
            outlive: Leave the server running when this process ends.

        Raises:
            EmbeddedServerFailed: It is not installed, ended early or did not get ready in time.
        """
        command = serve_command(
            host=HOST,
            port=self._port,
            data=self.data,
            code=self._code,
            parent=None if outlive else os.getpid(),
        )
        self.data.mkdir(parents=True, exist_ok=True)
        # The settings of some other server must not lead this one to that server's database.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PARETOPRESS_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        with httpx.Client(base_url=self.url, timeout=5.0, trust_env=False) as http:
            while time.monotonic() < deadline:
                status = self._process.poll()
                if status is not None:
                    raise EmbeddedServerFailed(
                        f"The embedded server ended with status {status}; the end of its log "
                        f"{self.log_path}:\n{self._log_tail()}"
                    )
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/readyz").status_code == httpx.codes.OK:
                        return
                time.sleep(READY_POLL_S)
        raise EmbeddedServerFailed(
            f"The embedded server was not ready after {READY_TIMEOUT_S:.0f} s; the end of its log "
            f"{self.log_path}:\n{self._log_tail()}"
        )

    def _log_tail(self) -> str:
        if not self.log_path.exists():
            return "(no log)"
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(empty)"

    def stop(self) -> None:
        """Stop every process of the server's group: asked first, killed after a while."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("embedded server killed", extra={"pid": process.pid})
        # What the leader left behind in its group goes too.
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def local(
    code: Path | str | None = None, data: Path | str | None = None, port: int = 0
) -> Iterator[Client]:
    """Run an embedded server for the block and yield its client.

    ```python
    with paretopress.local(code=".") as client:
        job = client.submit(model_id=..., dataset_id=..., ...)
        job.wait()
        print(job.front())
    ```

    Args:
        code: Folder of your own Python code, which models may then name as
            `{"python": "my_package.models:build"}`.
        data: Folder that keeps models, jobs and checkpoints; by default a temporary one that is
            deleted at the end of the block.
        port: TCP port on loopback; 0 takes a free one.

    Raises:
        EmbeddedServerFailed: It is not installed, ended early or did not get ready in time.
    """
    temporary = Path(tempfile.mkdtemp(prefix="paretopress-")) if data is None else None
    folder = temporary or Path(data or "")
    server = EmbeddedServer(data=folder, code=Path(code) if code is not None else None, port=port)
    try:
        server.start()
        with Client(server.url) as client:
            yield client
    finally:
        server.stop()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
