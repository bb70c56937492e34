"""Process: checks and times one order under limits of memory, CPU and time.

What was downloaded runs here and nowhere else in the agent: a file that eats memory or hangs ends
this process. It gets no secrets, and it ends with the agent, also by kill -9.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from search.measurement import Reading
from workers.device_agent.order import Order, Outcome
from workers.meters import open_runtime
from workers.meters.energy import energy_readings
from workers.meters.latency import time_files
from workers.meters.startup import METRICS_OF, startup_readings

ORDER, ANSWER, TIMES = "order.json", "answer.json", "times.npz"
"""Files in the order's folder, beside its parts."""

VALUE_TOLERANCE = 1e-3
"""Largest difference of outputs, relative to their size: kernels of other CPUs round elsewhere."""

LEAST_AGREEMENT = 0.9
"""Least share of inputs on which INT8 files must decide alike."""

GRACE_S = 60.0
"""Time beside the timing: starting, loading, checking."""

FILE_BYTES = 256 << 20
"""Largest file that the process may write."""

SECRETS = ("PARETOPRESS_",)
"""How the environment's names begin that the process does not get."""

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def run(folder: Path, order: Order, memory_bytes: int, stop: threading.Event) -> Outcome | None:
    """Run an order whose files are in `folder`; None where `stop` was set first.

    Args:
        folder: Of this order alone.
        order: What to do.
        memory_bytes: Address space that the process may take.
        stop: Ends it early.
    """
    (folder / ORDER).write_text(json.dumps(order.to_json()))
    for name in (ANSWER, TIMES):
        (folder / name).unlink(missing_ok=True)
    wall_s = 2 * order.max_seconds + GRACE_S
    cpu_s = int(wall_s * max(1, order.device.threads)) + 1

    def limit() -> None:
        if hasattr(_LIBC, "prctl"):
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    environment = {k: v for k, v in os.environ.items() if not k.startswith(SECRETS)}
    # Their pools are of no use beside a runtime's own and take address space.
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.device_agent.sandbox", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=limit,
        )
        ended = _wait(process, wall_s, stop)
    if not ended and stop.is_set():
        return None
    if not ended:
        return Outcome(failure=f"it took more than {wall_s:.0f} s of wall time")
    return _outcome(folder, process.returncode, memory_bytes)


def _wait(process: subprocess.Popen[bytes], wall_s: float, stop: threading.Event) -> bool:
    """Wait for the process's end; kill it and return False at its limit or when told to stop."""
    deadline = time.monotonic() + wall_s
    try:
        while time.monotonic() < deadline and not stop.is_set():
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
            return True
        return False
    finally:
        # Whatever it started is in its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcome(folder: Path, code: int, memory_bytes: int) -> Outcome:
    try:
        answer: dict[str, Any] = json.loads((folder / ANSWER).read_text())
    except (OSError, ValueError):
        last = (folder / "log").read_text(errors="replace").strip()[-1000:]
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return Outcome(
            failure=f"the timing process ended with {how}; it may take {memory_bytes >> 20} MiB. "
            f"{last}"
        )
    if answer["failure"] is not None:
        return Outcome(failure=answer["failure"])
    return Outcome(times=(folder / TIMES).read_bytes(), readings=answer["readings"])


def check(order: Order, candidate: bytes, probe: bytes) -> str | None:
    """Run the candidate on the probe; return in what it is not what was ordered, or None."""
    with np.load(io.BytesIO(probe), allow_pickle=False) as arrays:
        inputs, expected = arrays["inputs"], arrays["expected"]
    device = order.device
    with open_runtime(device.runtime, threads=device.threads, seed=order.seed) as runtime:
        outputs = runtime.load(candidate, device.batch).outputs(inputs)
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        return f"outputs of shape {outputs.shape} are not {expected.shape} finite numbers"
    if order.compare == "decisions":
        share = float((outputs.argmax(1) == expected.argmax(1)).mean())
        if share < LEAST_AGREEMENT:
            return (
                f"the file decides as expected on {share:.1%} of {len(inputs)} inputs; "
                f"{LEAST_AGREEMENT:.0%} is required"
            )
        return None
    size = float(np.abs(expected).max()) or 1.0
    difference = float(np.abs(outputs - expected).max()) / size
    if difference > VALUE_TOLERANCE:
        return (
            f"outputs differ from the expected ones by {difference:.2e} of their size; "
            f"{VALUE_TOLERANCE:.0e} is allowed"
        )
    return None


def _timed(order: Order, candidate: bytes, baseline: bytes) -> tuple[bytes, list[Reading]]:
    """Return the raw times as an archive, and all readings."""
    device = order.device
    result = time_files(
        candidate,
        baseline,
        device,
        seed=order.seed,
        max_seconds=order.max_seconds,
        width=order.width,
    )
    readings = list(result.readings)
    if set(order.metrics) & set(METRICS_OF):
        readings += startup_readings(candidate, baseline, device, seed=order.seed)
    if "energy_mj" in order.metrics:
        readings += energy_readings(candidate, baseline, device, seed=order.seed)
    missing = sorted(set(order.metrics) - {reading.metric for reading in readings})
    if missing:
        raise ValueError(f"this board cannot read {', '.join(missing)}")
    return result.to_npz(), readings


def main(folder: Path) -> None:
    """Check and time the order in the folder; leave the answer there."""
    order = Order.from_json(json.loads((folder / ORDER).read_text()))
    candidate, baseline, probe = (
        (folder / part).read_bytes() for part in ("candidate", "baseline", "probe")
    )
    readings: list[dict[str, Any]] = []
    failure: str | None
    try:
        failure = check(order, candidate, probe)
        if failure is None:
            times, found = _timed(order, candidate, baseline)
            readings = [reading.to_json() for reading in found]
            (folder / TIMES).write_bytes(times)
    except MemoryError:
        raise
    except Exception as error:  # The board's edge: what breaks is an answer.
        failure = f"{type(error).__name__}: {error}"[:2000]
    draft = folder / "answer.new"
    draft.write_text(json.dumps({"failure": failure, "readings": readings}))
    draft.replace(folder / ANSWER)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
