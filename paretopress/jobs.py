"""A handle on one submitted job: watch it, wait for it, read its front, pull its checkpoints."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from paretopress import checkpoints
from paretopress.errors import ClientError, JobFailed
from paretopress.events import follow
from paretopress.layers import Layers
from paretopress.progress import show_until_end
from paretopress.types import Event, Front, FrontMember, JobInfo, TrialInfo
from paretopress.wire import API, Wire

POLL_S = 1.0


class Job:
    """A submitted job; every method asks the server anew.

    Args:
        wire: Connection.
        job_id: Which job.
    """

    def __init__(self, wire: Wire, job_id: str) -> None:
        self.id = job_id
        self._wire = wire
        self._path = f"{API}/jobs/{job_id}"

    def __repr__(self) -> str:
        return f"Job({self.id!r} at {self._wire.url})"

    def info(self) -> JobInfo:
        """Return the job as it stands."""
        return JobInfo.model_validate(self._wire.request("GET", self._path).json())

    def watch(self, after: int = 0) -> Iterator[Event]:
        """Yield the job's events, each once and in order, until it has ended.

        Args:
            after: Only events with a larger number; 0 starts with the first.
        """
        return follow(
            self._wire, f"{self._path}/events", after=after, ended=lambda: self.info().finished
        )

    def wait(self, *, progress: bool = True, timeout_s: float | None = None) -> JobInfo:
        """Return the job when it has ended.

        Args:
            progress: Show live progress bars meanwhile; in a notebook too.
            timeout_s: Give up waiting after this long; the job goes on.

        Raises:
            JobFailed: It ended in FAILED.
            ClientError: The time is over.
        """
        if progress:
            info = show_until_end(self, timeout_s=timeout_s)
        else:
            info = self._wait_silently(timeout_s)
        if info.state == "FAILED":
            raise JobFailed(f"Job {self.id} failed: {_reason(info)}")
        return info

    def _wait_silently(self, timeout_s: float | None) -> JobInfo:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (info := self.info()).finished:
            if deadline is not None and time.monotonic() > deadline:
                raise ClientError(f"Job {self.id} is still {info.state} after {timeout_s} s")
            time.sleep(POLL_S)
        return info

    def trials(self) -> Iterator[TrialInfo]:
        """Yield all trials, in the order of proposal, page by page."""
        params: dict[str, str | int] = {"limit": 200}
        while True:
            page = self._wire.request("GET", f"{self._path}/trials", params=params).json()
            for item in page["data"]:
                yield TrialInfo.model_validate(item)
            if not page.get("has_more"):
                return
            params["cursor"] = page["next_cursor"]

    def front(self) -> Front:
        """Return the front beside the baseline; provisional while the job runs."""
        return Front.model_validate(self._wire.request("GET", f"{self._path}/front").json())

    def layers(self) -> Layers:
        """Return what single decisions damage at each site, and what the front decides there."""
        answer = self._wire.request("GET", f"{self._path}/analysis/layers")
        return Layers.model_validate(answer.json())

    def cancel(self) -> JobInfo:
        """Ask the server to stop the job; finished trials stay. Repeating it changes nothing."""
        return JobInfo.model_validate(self._wire.request("POST", f"{self._path}:cancel").json())

    def pull(self, folder: Path | str, member: int | FrontMember = 0) -> list[Path]:
        """Download a member's checkpoint, check its SHA-256 and unpack it into a folder.

        Args:
            folder: Made where it does not exist.
            member: Number in the front, from 0, or the member itself.

        Returns:
            The files, sorted.

        Raises:
            LookupError: The front has no such member, or the member has no checkpoint.
            DownloadDamaged: The download is not what the server declares.
        """
        if isinstance(member, int):
            members = self.front().members
            if not 0 <= member < len(members):
                raise LookupError(
                    f"Job {self.id} has no member {member}; its front has {len(members)} members"
                )
            member = members[member]
        artifact_id = member.artifacts.get("checkpoint")
        if artifact_id is None:
            raise LookupError(
                f"Trial {member.trial_id} has no checkpoint; only confirmed members of an ended "
                f"job have one (state now: {self.info().state})"
            )
        with tempfile.TemporaryDirectory() as temporary:
            archive = Path(temporary) / "checkpoint.zip"
            checkpoints.download(self._wire, artifact_id, archive)
            return checkpoints.unpack(archive, Path(folder))

    def pull_all(self, folder: Path | str) -> list[Path]:
        """Pull every member into `folder/member-0`, `folder/member-1`, ...; return those."""
        folders = []
        for number, member in enumerate(self.front().members):
            target = Path(folder) / f"member-{number}"
            self.pull(target, member)
            folders.append(target)
        return folders


def _reason(info: JobInfo) -> str:
    problem = info.problem or {}
    return str(problem.get("detail") or problem.get("title") or "the server gives no reason")
