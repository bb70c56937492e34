"""The quiet-node rule: while a latency is timed, nothing else of ours runs on that node.

Two lock files in a folder of the node carry it, with `flock(2)`, so that every process of the
node takes part, whichever job it works for, and a killed process gives up its locks at once:

* `node.lock` is held shared by whoever computes and exclusively by whoever times;
* `gate.lock` is held exclusively by whoever times *or waits to*, and passed (held shared for an
  instant) by whoever wants to start computing. So new computing never overtakes a waiting timer,
  and a timer waits for those already at work only.

A long computation calls `breathe` between its steps; that lets a waiting timer through.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class QuietNode:
    """The locks as one thread of one process sees them; make one instance per thread.

    Nesting is safe: `busy` within `busy` does nothing, `alone` within `busy` gives the shared
    lock up while it lasts, and `busy` within `alone` does nothing.

    Attributes:
        folder: Local to the node (not a network file system), the same for all its workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._busy: int | None = None
        self._alone = False

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Compute: waits while someone times or waits to time, then holds the node shared."""
        if self._busy is not None or self._alone:
            yield
            return
        self._enter_busy()
        try:
            yield
        finally:
            self._leave_busy()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Time: waits until nobody computes or times, then holds the node exclusively."""
        if self._alone:
            yield
            return
        was_busy = self._busy is not None
        self._leave_busy()
        try:
            with self._locked("gate", fcntl.LOCK_EX), self._locked("node", fcntl.LOCK_EX):
                self._alone = True
                try:
                    yield
                finally:
                    self._alone = False
        finally:
            if was_busy:
                self._enter_busy()

    def breathe(self) -> bool:
        """Let a waiting timer through; call it between steps of a long computation.

        Costs some microseconds when nobody waits. Does nothing outside of `busy`.

        Returns:
            Whether someone was waiting; then the node was given up and taken again.
        """
        if self._busy is None:
            return False
        gate = self._open("gate")
        try:
            fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._leave_busy()
            self._enter_busy()
            return True
        finally:
            os.close(gate)
        return False

    def _enter_busy(self) -> None:
        with self._locked("gate", fcntl.LOCK_SH):
            node = self._open("node")
            # Never waits: an exclusive holder of the node holds the gate as well.
            fcntl.flock(node, fcntl.LOCK_SH)
        self._busy = node

    def _leave_busy(self) -> None:
        if self._busy is not None:
            # Closing the only descriptor of an open file releases its lock.
            os.close(self._busy)
            self._busy = None

    @contextlib.contextmanager
    def _locked(self, name: str, mode: int) -> Iterator[None]:
        handle = self._open(name)
        try:
            fcntl.flock(handle, mode)
            yield
        finally:
            os.close(handle)

    def _open(self, name: str) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.folder / f"{name}.lock", flags, 0o666)
