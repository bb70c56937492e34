"""A conductor's writing without its work: claims a job and records trials until told to end.

Run as a module with the database's URL, an owner and a number of trials (0: for ever). Prints the
claimed job, then each trial's id after its outcome was committed.
"""

from __future__ import annotations

import itertools
import sys

from search.agent import Snapshot
from service.db import lease
from service.db.ledger import SqlLedger
from service.db.session import Database
from tests.contracts.ledger import ONNX, evaluate, finish


def main(url: str, owner: str, count: int) -> None:
    """Claim a job and write."""
    database = Database(url)
    with database.write() as session:
        claim = lease.claim_job(session, owner)
    assert claim is not None
    say(claim.job_id)
    ledger = SqlLedger(database, claim.job_id, owner, claim.epoch)
    done = len(ledger.trials())
    for keep in itertools.count(done + 1) if count == 0 else range(done + 1, done + 1 + count):
        ledger.wish()
        (trial,) = ledger.propose([evaluate(keep)], agent="a", snapshot=Snapshot({"asked": keep}))
        recorded = ledger.record(finish(trial, ledger.start(trial), artifacts={"onnx": ONNX}))
        assert recorded is not None
        say(recorded.id)


def say(line: str) -> None:
    """Tell the parent, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
