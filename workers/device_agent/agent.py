"""The agent's life: register, pull, run, deliver; nothing finished is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.device import DeviceSpec
from workers.device_agent import sandbox
from workers.device_agent.http import Refused, Server, Unreachable, WrongHash, patiently
from workers.device_agent.order import Kept, Order, Outcome, write_whole
from workers.meters import open_runtime
from workers.meters.fingerprint import fingerprint

logger = logging.getLogger(__name__)

PULL_WAIT_S = 20.0
"""How long one question for work may wait for an answer."""

IDLE_PAUSE_S = 1.0
"""Pause after an empty answer: a busy server answers at once."""


class Drained(Exception):
    """The server gives this agent nothing more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a board offers.

    Attributes:
        name: The agent's.
        pool: Boards that share orders.
        runtime: Name in `workers.meters.RUNTIMES`.
        threads: Of one inference.
        memory_bytes: Address space of one timing.
    """

    name: str
    pool: str
    runtime: str
    threads: int = 1
    memory_bytes: int = 4 << 30

    def body(self) -> dict[str, Any]:
        """Return the registration, with what this machine says of itself.

        Raises:
            DeviceUnknown: The runtime is unknown or not installed, or there are too few cores.
        """
        with open_runtime(self.runtime, threads=self.threads, seed=0):
            spec = DeviceSpec(name=f"board/{self.pool}", runtime=self.runtime, threads=self.threads)
        return {
            "name": self.name,
            "pool": self.pool,
            "runtime": self.runtime,
            "threads": self.threads,
            "hardware": dict(fingerprint(spec).hardware),
        }


class DeviceAgent:
    """One agent on one board.

    Args:
        offer: What it offers.
        server: Whom it serves.
        folder: Of its own: token, kept result, files of the order at hand.
        execute: Runs an order, `sandbox.run` in life.
    """

    def __init__(
        self,
        offer: Offer,
        server: Server,
        folder: Path,
        execute: Callable[[Path, Order, int, threading.Event], Outcome | None] = sandbox.run,
    ) -> None:
        self.offer = offer
        self.server = server
        self._execute = execute
        self._identity = folder / "agent.json"
        self._kept = folder / "result.json"
        self._work = folder / "work"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def run(self) -> None:
        """Serve until drained.

        Raises:
            Refused: The server does not want this agent; the message says why.
            DeviceUnknown: The board is not what was offered.
        """
        self.begin()
        while True:
            try:
                if not self.step(PULL_WAIT_S):
                    threading.Event().wait(IDLE_PAUSE_S)
            except Drained:
                logger.info("drained; nothing is left to do")
                return

    def begin(self) -> None:
        """Deliver what an earlier life has finished, then register."""
        body = self.offer.body()
        try:
            self.server.token = json.loads(self._identity.read_text())["token"]
        except (OSError, ValueError, KeyError, TypeError):
            self.server.token = ""
        if self.server.token:
            self._deliver()
        # Without a token nobody takes what is kept.
        self._kept.unlink(missing_ok=True)
        answer = patiently(lambda: self.server.register(body))
        write_whole(self._identity, json.dumps({"name": self.offer.name, "token": answer["token"]}))
        logger.info("registered as %s of %s", self.offer.name, answer["device"])

    def step(self, wait_s: float) -> bool:
        """Pull one order and see it through; False where there was none.

        Raises:
            Drained: There will be none.
        """
        try:
            order = patiently(lambda: self.server.pull(wait_s))
        except Refused as error:
            if error.slug == "illegal-state":
                raise Drained from error
            if error.slug == "agent-refused":
                logger.warning("the server does not know this agent any more; registering again")
                self._identity.unlink(missing_ok=True)
                self.begin()
                return True
            raise
        if order is None:
            return False
        logger.info("order %s: at most %.0f s", order.id, order.max_seconds)
        outcome = self._carry_out(order)
        if outcome is not None:
            Kept(order_id=order.id, body=outcome.to_json(order.attempt)).write(self._kept)
            self._deliver()
        return True

    def _carry_out(self, order: Order) -> Outcome | None:
        """Download and run an order while its lease is kept; None where it is another's now."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()
        gone, over = threading.Event(), threading.Event()
        keeper = threading.Thread(target=self._keep_lease, args=(order, gone, over), daemon=True)
        keeper.start()
        try:
            patiently(lambda: self.server.download(order, self._work))
            return self._execute(self._work, order, self.offer.memory_bytes, gone)
        except WrongHash as error:
            return Outcome(failure=str(error))
        except Refused as error:
            logger.warning("order %s is no longer ours: %s", order.id, error)
            return None
        finally:
            over.set()
            keeper.join()
            shutil.rmtree(self._work, ignore_errors=True)

    def _keep_lease(self, order: Order, gone: threading.Event, over: threading.Event) -> None:
        """Renew the lease until the order is over; sets `gone` when someone else has it."""
        while not over.wait(order.lease_s / 3):
            try:
                self.server.renew(order)
            except Unreachable as error:
                # The lease may run out meanwhile; as long as nobody takes the order it is ours.
                logger.warning("the lease of %s could not be renewed: %s", order.id, error)
            except Refused as error:
                logger.warning("order %s was taken away: %s", order.id, error)
                gone.set()
                return

    def _deliver(self) -> None:
        """Send the kept result until the server has taken or refused it."""
        kept = Kept.read(self._kept)
        if kept is None:
            return
        try:
            patiently(lambda: self.server.post(kept))
            logger.info("order %s is answered", kept.order_id)
        except Refused as error:
            logger.warning("the result of %s was refused: %s", kept.order_id, error)
            if error.slug == "result-implausible":
                self._give_up(kept, str(error))
        self._kept.unlink(missing_ok=True)

    def _give_up(self, kept: Kept, reason: str) -> None:
        """Tell of a result that the server does not believe, so that nobody waits for it."""
        body = {"attempt": kept.body["attempt"], "failure": f"the result was refused: {reason}"}
        try:
            patiently(lambda: self.server.post(Kept(order_id=kept.order_id, body=body)))
        except Refused as error:
            logger.warning("order %s is no longer ours: %s", kept.order_id, error)
