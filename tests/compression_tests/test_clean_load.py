"""A checkpoint in an interpreter that has nothing of ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from compression.clean_load import load_test
from compression.codegen import generate
from compression.errors import CheckpointInvalid
from compression.models.cifar_resnet import cifar_resnet
from tests.compression_tests.test_export import random_norms

SHAPE = (3, 32, 32)
Answer = tuple[dict[str, bytes], NDArray[np.float32], NDArray[np.float32]]

CONSTANT = """
import torch
class Constant:
    def __call__(self, x):
        return torch.zeros(len(x), 10)
def load(folder):
    {statement}
    return Constant()
"""


@pytest.fixture(scope="module")
def checkpoint() -> Answer:
    model = random_norms(cifar_resnet(8))
    generated = generate(model, SHAPE)
    files = {
        "model.py": generated.source.encode(),
        "model.safetensors": save(dict(generated.state)),
    }
    x = np.random.default_rng(0).standard_normal((4, *SHAPE), dtype=np.float32)
    with torch.no_grad():
        return files, x, model(torch.from_numpy(x)).numpy()


def test_generated_checkpoint_loads_and_computes_the_same(checkpoint: Answer) -> None:
    files, x, y = checkpoint
    result = load_test(files, x, y)
    assert result.difference <= 1e-5
    assert result.wall_s > 0


def test_other_outputs_are_found_out(checkpoint: Answer) -> None:
    files, x, y = checkpoint
    with pytest.raises(CheckpointInvalid, match="differ by"):
        load_test(files, x, y + np.float32(0.1) * np.abs(y).max())


def test_missing_files_are_named(checkpoint: Answer) -> None:
    files, x, y = checkpoint
    with pytest.raises(CheckpointInvalid, match=r"lacks model\.safetensors"):
        load_test({"model.py": files["model.py"]}, x, y)


def test_imports_of_ours_are_refused(checkpoint: Answer) -> None:
    # One interpreter tries them all: starting one costs seconds.
    names = ["compression", "search", "service", "workers", "paretopress", "torchvision"]
    names += ["torch_pruning", "onnx", "onnxruntime", "constriction", "PIL", "scipy"]
    tried = f"""
    refused = []
    for name in {names!r}:
        try:
            __import__(name)
        except ImportError as error:
            refused.append((name, "is not part of torch" in str(error)))
    raise RuntimeError(str(refused))"""
    source = CONSTANT.format(statement=tried.strip())
    expected = str([(name, True) for name in names])
    with pytest.raises(CheckpointInvalid) as caught:
        load_test({"model.py": source.encode(), "model.safetensors": b"x"}, *checkpoint[1:])
    assert expected in str(caught.value)


def test_an_interpreter_that_dies_or_hangs_is_reported(checkpoint: Answer) -> None:
    weights = b"x"
    dying = CONSTANT.format(statement="import os; os._exit(7)").encode()
    with pytest.raises(CheckpointInvalid, match="ended with code 7"):
        load_test({"model.py": dying, "model.safetensors": weights}, *checkpoint[1:])
    hanging = CONSTANT.format(statement="import time; time.sleep(60)").encode()
    with pytest.raises(CheckpointInvalid, match=r"within 0\.5 s"):
        load_test(
            {"model.py": hanging, "model.safetensors": weights}, *checkpoint[1:], timeout_s=0.5
        )


@pytest.mark.slow
def test_secrets_of_the_environment_stay_here(
    checkpoint: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOPRESS_SECRET", "hush")
    source = CONSTANT.format(statement="import os; raise RuntimeError(sorted(os.environ))")
    with pytest.raises(CheckpointInvalid) as caught:
        load_test({"model.py": source.encode(), "model.safetensors": b"x"}, *checkpoint[1:])
    assert "OMP_NUM_THREADS" in str(caught.value)
    assert "PARETOPRESS_SECRET" not in str(caught.value)
