"""Questions that only a fresh process can answer, asked as JSON.

Answers come through a pipe of their own, because runtimes write to standard output what they like.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]

SAID_BYTES = 500
"""Of what a failed process said, the end that is passed on."""

END_S = 10.0
"""What a process may take to end after the last question before it is killed."""


class ProcessFailed(ValueError):
    """The process ended without an answer; with the end of what it said."""


class FreshProcess:
    """A process that answers one question after the other while it is entered.

    It inherits the calling thread's cores, and OpenMP's threads sleep while they wait. By default
    they spin: beside other work they use up their time slices doing nothing, and then at every
    operator wait whole slices of others for their cores: many times the time. The policy is read
    when the library is loaded, so only a new process can be told.

    Args:
        module: Run as `python -m module`; calls `serve`.
        threads: OpenMP threads of runtimes that have no other way to be told.
    """

    def __init__(self, module: str, *, threads: int) -> None:
        self._module = module
        self._threads = threads
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start the process."""
        said = self._ending.enter_context(tempfile.TemporaryFile())
        answers, theirs = os.pipe()
        self._ending.callback(os.close, answers)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=environment(self._threads),
                pass_fds=(theirs,),
            )
        except BaseException:
            self._ending.close()
            raise
        finally:
            os.close(theirs)
        self._said, self._answers, self._process = said, answers, process
        self._ending.callback(_end, process)
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process."""
        self._ending.close()

    def ask(self, question: Mapping[str, Any], *, timeout_s: float) -> Any:
        """Return the answer to a question, which is JSON data.

        Raises:
            ProcessFailed: The process failed, or took longer; it answers no more.
        """
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        until = time.monotonic() + timeout_s
        ready = select.poll()
        ready.register(self._answers, select.POLLIN)
        answer = b""
        while not answer.endswith(b"\n"):
            left_s = max(0.0, until - time.monotonic())
            if not ready.poll(1e3 * left_s):
                self._process.kill()
                raise ProcessFailed(f"No answer of {self._module} within {timeout_s:g} s")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise ProcessFailed(
                    f"{self._module} ended with {self._process.wait()}: {self._last_words()}"
                )
            answer += part
        return json.loads(answer)

    def _last_words(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-SAID_BYTES:]


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def environment(threads: int) -> dict[str, str]:
    """Return this process's environment with what a fresh one is told."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    told = {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    # It would overrule the policy.
    inherited = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    return inherited | told


def ask(module: str, question: Mapping[str, Any], *, threads: int, timeout_s: float) -> Any:
    """Return what a process of its own answers; see `FreshProcess`."""
    with FreshProcess(module, threads=threads) as process:
        return process.ask(question, timeout_s=timeout_s)


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer each line of standard input into the pipe that the command line names."""
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()
