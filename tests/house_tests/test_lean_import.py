"""The API process stays light: it loads neither torch nor ray, nor what brings them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "torchvision", "ray", "optuna", "botorch", "gpytorch", "onnx", "onnxruntime")

SCRIPT = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from service.app import create_app
from service.settings import Settings

app = create_app(Settings(data_dir=Path(sys.argv[1])))
with TestClient(app, base_url="http://127.0.0.1") as client:
    codes = [client.get(f"/api/v1/{name}").status_code for name in ("agents", "methods", "jobs")]
print(json.dumps({"codes": codes, "modules": sorted({m.partition(".")[0] for m in sys.modules})}))
"""

VOCABULARY = """
import json, sys
import compression.artifact, compression.cost, compression.methods, compression.plan
import compression.site, compression.space, compression.surveyed
import search.agent, search.catalogue, search.front, search.problem, search.trial
import workers.executor, workers.job, workers.ledger, workers.loop, workers.memory, workers.store
print(json.dumps({"modules": sorted({m.partition(".")[0] for m in sys.modules})}))
"""


def _run(script: str, *arguments: str) -> dict[str, list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_api_process_loads_nothing_heavy(tmp_path: Path) -> None:
    found = _run(SCRIPT, str(tmp_path))
    assert found["codes"] == [200, 200, 200]
    assert not set(HEAVY) & set(found["modules"])


def test_the_vocabulary_loads_nothing_heavy() -> None:
    heavy = {*HEAVY, "fastapi", "sqlalchemy", "pydantic"}
    assert not heavy & set(_run(VOCABULARY)["modules"])


def test_the_agent_of_a_board_loads_nothing_of_the_server() -> None:
    found = _run(
        "import json, sys, workers.device_agent.__main__, workers.meters.latency\n"
        "import workers.meters.onnxruntime_cpu\n"
        "print(json.dumps({'modules': sorted({m.partition('.')[0] for m in sys.modules})}))"
    )
    server = {*HEAVY, "fastapi", "sqlalchemy", "pydantic", "service", "openvino", "executorch"}
    assert not (server - {"onnxruntime"}) & set(found["modules"])


def test_the_client_loads_none_of_the_server() -> None:
    found = _run(
        "import json, sys, paretopress, paretopress.cli\n"
        "print(json.dumps({'modules': sorted({m.partition('.')[0] for m in sys.modules})}))"
    )
    server = {*HEAVY, "fastapi", "sqlalchemy", "numpy", "service", "search", "workers"}
    assert not (server | {"compression"}) & set(found["modules"])
