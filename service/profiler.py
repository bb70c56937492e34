"""Has a job's model profiled site by site, beside the job; whatever happens, the job goes on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from service.db import sensitivity
from service.db.sensitivity import ProfileKey
from service.db.session import Database
from service.settings import Settings
from workers.job import JobSpec

logger = logging.getLogger(__name__)

TIMEOUT_S = 900.0
"""Loading and half a minute of computing, on a node that is busy with the job."""

LEASE_S = TIMEOUT_S + 30.0
RETRY_S = 5.0


def start(
    database: Database,
    settings: Settings,
    spec: JobSpec,
    *,
    model_id: str,
    survey: Mapping[str, Any],
    owner: str,
    ended: threading.Event,
) -> None:
    """Profile the job's model in the background, unless that was done before.

    Args:
        database: Where profiles are kept.
        settings: Of the server.
        spec: The job.
        model_id: Of its model.
        survey: Of its model, as stored.
        owner: Name of this process.
        ended: Set when the job has ended: a profile that was not begun is left.
    """
    if not settings.profile_models:
        return
    key = ProfileKey.of(spec.model, spec.dataset, model_id)
    request = {
        "model": spec.model.to_json(),
        "dataset": spec.dataset.to_json(),
        "survey": dict(survey),
        "code_dir": spec.code_dir,
        "quiet_folder": str(settings.data_dir / "quiet"),
    }

    def work() -> None:
        try:
            while not ended.is_set():
                if profile_once(database, settings.store_url, key, request, owner):
                    return
                ended.wait(RETRY_S)
        except Exception:  # A profile is an extra: its failure is told, and harms nobody.
            logger.exception("profile failed", extra={"job": spec.job_id})

    threading.Thread(target=work, name="profiler", daemon=True).start()


def profile_once(
    database: Database,
    store_url: str,
    key: ProfileKey,
    request: Mapping[str, Any],
    owner: str,
) -> bool:
    """Compute a profile if nobody else does or did; False while another process computes it."""
    with database.write() as session:
        claimed = sensitivity.claim(session, key, owner, LEASE_S)
    if claimed != "mine":
        return claimed == "done"
    answer = _profile_process(store_url, request)
    with database.write() as session:
        if "ok" in answer:
            sensitivity.put(session, key, answer["ok"])
        elif "refused" in answer:
            sensitivity.refuse(session, key, str(answer["refused"]))
        else:
            sensitivity.release(session, key)
    return True


def _profile_process(store_url: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the process's answer; empty where it died, which another day it may not."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.sensitivity_profile", store_url],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        logger.warning("profile process took longer than %.0f s", TIMEOUT_S)
        return {}
    if done.returncode != 0:
        logger.error("profile process failed: %s", done.stderr)
        return {}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
