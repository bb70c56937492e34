"""Process: removes the blobs of the artifact store that nothing refers to any more.

Usage: `python -m service.sweep [--older-than-h HOURS] [--dry-run]`, on a machine that reaches
database and store, also while jobs run. Prints how many blobs, and how many bytes of how many.

Kept is every blob
- whose name stands anywhere in the database,
- whose name stands in a blob that is kept: manifests, checkpoints and reports name their parts,
- that was last put within HOURS before the oldest attempt that still runs began, or since.

So what a running attempt has put is kept until its result is in the database, whose rows name it.
Whatever else writes blobs (uploads, scans, boards' answers) has put them in the database long
before HOURS have passed. A row never begins to name a blob that no row named and nobody has put
since. A blob that is put while it is about to be removed stays; the stores see to that.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from compression.artifact import Digest
from service.db.columns import utc_now
from service.db.references import digests_in, oldest_attempt, referenced
from service.db.session import Database
from service.logs import configure_logging
from service.settings import Settings
from workers.errors import BlobMissing
from workers.open_store import open_store
from workers.store import ArtifactStore, Blob

OLDER_THAN_H = 24.0
LEAST_H = 1.0
"""Clocks of machines differ, and between a blob's put and its row an upload may wait."""


@dataclasses.dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did, or would do.

    Attributes:
        removed: Blobs that were removed.
        removed_bytes: Their bytes.
        kept: Blobs that were kept.
        kept_bytes: Their bytes.
    """

    removed: int = 0
    removed_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0


def sweep(
    database: Database,
    store: ArtifactStore,
    older_than_h: float = OLDER_THAN_H,
    *,
    dry_run: bool = False,
    clock: Callable[[], datetime.datetime] = utc_now,
) -> Swept:
    """Remove what nothing refers to; see the module.

    Raises:
        ValueError: `older_than_h` is below `LEAST_H`.
        NotImplementedError: Nothing can be removed safely from this store.
    """
    if not older_than_h >= LEAST_H:
        raise ValueError(f"older_than_h is {older_than_h:g}; {LEAST_H:g} is the least")
    with database.read() as session:
        # In this order: what begins afterwards puts blobs that are young.
        began = oldest_attempt(session)
        now = clock()
        before = min(began or now, now) - datetime.timedelta(hours=older_than_h)
        named = referenced(session)
    blobs = {blob.digest: blob for blob in store.blobs()}
    young = {digest for digest, blob in blobs.items() if blob.put_at >= before}
    reached = _reached(named | young, blobs, store)
    doomed = [blob for digest, blob in blobs.items() if digest not in reached]
    removed = [blob for blob in doomed if dry_run or store.remove(blob.digest, before)]
    removed_bytes = sum(blob.size_bytes for blob in removed)
    return Swept(
        removed=len(removed),
        removed_bytes=removed_bytes,
        kept=len(blobs) - len(removed),
        kept_bytes=sum(blob.size_bytes for blob in blobs.values()) - removed_bytes,
    )


def _reached(roots: set[Digest], blobs: Mapping[Digest, Blob], store: ArtifactStore) -> set[Digest]:
    """Return the blobs among the roots, those that they name, and so on."""
    reached: set[Digest] = set()
    waiting = roots & blobs.keys()
    while waiting:
        digest = waiting.pop()
        reached.add(digest)
        try:
            for piece in _pieces(digest, store):
                waiting |= (digests_in(piece) & blobs.keys()) - reached
        except BlobMissing:
            continue  # Another sweep was faster, and named it as little as we would.
    return reached


def _pieces(digest: Digest, store: ArtifactStore) -> Iterator[bytes]:
    """Yield a blob's bytes in pieces that overlap, so that no name is cut in two."""
    rest = b""
    for chunk in store.stream(digest):
        piece = rest + chunk
        yield piece
        rest = piece[-63:]


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep the store that the settings name."""
    parser = argparse.ArgumentParser(
        prog="python -m service.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--older-than-h", type=float, default=OLDER_THAN_H, metavar="HOURS")
    parser.add_argument("--dry-run", action="store_true", help="remove nothing")
    arguments = parser.parse_args(argv)
    settings = Settings()
    configure_logging(settings)
    database = Database(settings.database_url)
    database.migrate()
    try:
        swept = sweep(
            database,
            open_store(settings.store_url),
            arguments.older_than_h,
            dry_run=arguments.dry_run,
        )
    except (ValueError, NotImplementedError) as error:
        parser.exit(2, f"{error}\n")
    done = "would remove" if arguments.dry_run else "removed"
    sys.stdout.write(
        f"{done} {swept.removed:,} blobs of {swept.removed_bytes:,} bytes, "
        f"kept {swept.kept:,} of {swept.kept_bytes:,}\n"
    )


if __name__ == "__main__":
    main()
