"""Process: serves timing orders on a board; `paretopress device run` starts it.

The API key is read from `PARETOPRESS_API_KEY`, since arguments are everybody's to see.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from workers.device_agent.agent import DeviceAgent, Offer
from workers.device_agent.http import Refused, Server, open_http
from workers.errors import DeviceUnknown


def _usual_name() -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", socket.gethostname().lower()).strip("-._") or "board"


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until drained, SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m workers.device_agent", description=__doc__)
    parser.add_argument("--server", required=True, help="root of the server")
    parser.add_argument("--name", default=_usual_name())
    parser.add_argument("--pool", default=None, help="boards that share orders; the name if absent")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-mib", type=int, default=4096, help="limit of one timing")
    parser.add_argument("--state", type=Path, default=None, help="folder that outlives the agent")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder = given.state or Path.home() / ".local/state/paretopress-device" / given.name
    offer = Offer(
        name=given.name,
        pool=given.pool or given.name,
        runtime=given.runtime,
        threads=given.threads,
        memory_bytes=given.memory_mib << 20,
    )

    def stop(_number: int, _frame: FrameType | None) -> None:
        # What is finished is on disk; what is not is given to another board.
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    http = open_http(given.server, os.environ.get("PARETOPRESS_API_KEY"))
    try:
        DeviceAgent(offer, Server(http, given.name), folder).run()
    except (Refused, DeviceUnknown) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
