"""Loads a checkpoint the way its user will: alone. Run by `compression.clean_load`, never imported.

Called as `python -I isolated_load.py FOLDER`: it imports `model.py` of the folder with everything
but Python itself, torch, safetensors and numpy refused, runs `inputs.npy` and compares with
`outputs.npy`. Its last line on standard output is a JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_ALLOWED = frozenset({"torch", "safetensors", "numpy"})


class _Refuse(MetaPathFinder):
    """Stands before every other finder and refuses what a user may not have."""

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._allowed:
            raise ImportError(f"{fullname} is not part of torch, safetensors, numpy or Python")
        return None


def _check(folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    import numpy as np
    import safetensors.torch  # noqa: F401
    import torch

    # What torch itself pulled in may be asked for again; nothing else that is installed here may.
    loaded = {name.partition(".")[0] for name in sys.modules}
    sys.meta_path.insert(0, _Refuse(_ALLOWED | sys.stdlib_module_names | loaded))
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    if spec is None or spec.loader is None:
        return {"error": "model.py cannot be imported"}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load(folder)
    inputs = torch.from_numpy(np.load(folder / "inputs.npy", allow_pickle=False))
    expected = np.load(folder / "outputs.npy", allow_pickle=False)
    with torch.no_grad():
        found = model(inputs).numpy()
    if found.shape != expected.shape:
        return {"error": f"the outputs have shape {found.shape}, not {expected.shape}"}
    if not np.isfinite(found).all():
        return {"error": "the outputs are not finite"}
    difference = float(np.abs(found - expected).max()) if expected.size else 0.0
    scale = float(np.abs(expected).max()) if expected.size else 1.0
    seconds = time.perf_counter() - started
    return {"difference": difference, "scale": scale, "seconds": seconds}


def main() -> None:
    """Print the result; whatever goes wrong is the result too."""
    try:
        result = _check(Path(sys.argv[1]))
    except BaseException as error:  # this process exists to find out what can go wrong
        result = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
