"""Process: makes, lists and revokes API keys, on the machine of the database.

Usage: `python -m service.keys create NAME [--scope SCOPE ...] | list | revoke KEY_ID`. A new key is
printed once and stored as a hash.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from service.db import api_keys
from service.db.session import Database
from service.settings import Settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command on the database that the settings name."""
    parser = argparse.ArgumentParser(prog="python -m service.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it")
    create.add_argument("name")
    create.add_argument("--scope", action="append", default=[], help="may be repeated")
    commands.add_parser("list", help="print id, name, scopes and state of every key")
    revoke = commands.add_parser("revoke", help="make a key useless")
    revoke.add_argument("key_id")
    arguments = parser.parse_args(argv)
    database = Database(Settings().database_url)
    database.migrate()
    with database.write() as session:
        match arguments.command:
            case "create":
                scopes = arguments.scope or ["admin"]
                _, text = api_keys.create(session, name=arguments.name, scopes=scopes)
                lines = [text]
            case "list":
                lines = [
                    f"{key.id} {key.name} {','.join(key.scopes)} "
                    f"{'revoked' if key.revoked_at else 'valid'}"
                    for key in api_keys.everything(session)
                ]
            case _:
                lines = [f"{api_keys.revoke(session, arguments.key_id).id} revoked"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
