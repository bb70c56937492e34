"""The proof that a checkpoint loads without us: another interpreter loads it and computes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compression.errors import CheckpointInvalid

_SCRIPT = Path(__file__).with_name("isolated_load.py")
_NEEDED = ("model.py", "model.safetensors")

# What a process needs to find its shared libraries; secrets in the environment stay here.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "LANG")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadTest:
    """What the clean interpreter found.

    Attributes:
        difference: Largest output difference relative to the largest expected output.
        wall_s: Seconds from the import of torch to the outputs.
    """

    difference: float
    wall_s: float


def load_test(
    files: Mapping[str, bytes],
    probe_inputs: NDArray[np.float32],
    expected_outputs: NDArray[np.float32],
    *,
    tolerance: float = 1e-4,
    timeout_s: float = 120.0,
) -> LoadTest:
    """Load a checkpoint in a clean interpreter and compare its outputs.

    The interpreter runs isolated (`python -I`), in a folder of its own, on one thread, and can
    import nothing but Python, torch, safetensors and numpy.

    Args:
        files: Name and content; `model.py` and `model.safetensors` are used.
        probe_inputs: `n x C x H x W`, preprocessed.
        expected_outputs: What the model answers, `n x classes`.
        tolerance: Largest difference, relative to the largest expected output.
        timeout_s: Wall seconds until the attempt is given up.

    Raises:
        CheckpointInvalid: It does not load, imports what it may not, or computes something else.
    """
    missing = [name for name in _NEEDED if name not in files]
    if missing:
        raise CheckpointInvalid(f"The checkpoint lacks {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="load-test-") as name:
        folder = Path(name)
        for file in _NEEDED:
            (folder / file).write_bytes(files[file])
        np.save(folder / "inputs.npy", np.ascontiguousarray(probe_inputs, np.float32))
        np.save(folder / "outputs.npy", np.ascontiguousarray(expected_outputs, np.float32))
        result = _run(folder, timeout_s)
    if "error" in result:
        raise CheckpointInvalid(f"The checkpoint does not load by itself: {result['error']}")
    scale = float(str(result["scale"])) or 1.0
    difference = float(str(result["difference"])) / scale
    if not math.isfinite(difference) or difference > tolerance:
        raise CheckpointInvalid(
            f"The loaded checkpoint's outputs differ by {difference:.3g} of their scale; "
            f"at most {tolerance:g} is allowed"
        )
    return LoadTest(difference=difference, wall_s=float(str(result["seconds"])))


def _run(folder: Path, timeout_s: float) -> dict[str, object]:
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    environment["OMP_NUM_THREADS"] = "1"
    # -B: the folder goes away at once, so compiled files would only cost time.
    command = [sys.executable, "-I", "-B", str(_SCRIPT), str(folder)]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointInvalid(f"The checkpoint did not load within {timeout_s:g} s") from error
    lines = done.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError) as error:
        tail = done.stderr.strip()[-500:]
        raise CheckpointInvalid(
            f"The clean interpreter ended with code {done.returncode}: {tail}"
        ) from error
    if not isinstance(result, dict):
        raise CheckpointInvalid("The clean interpreter answered with something unknown")
    return result
