"""NVIDIA ModelOpt's FastNAS on a trained CIFAR ResNet, in an environment of its own.

    PEER_PYTHON -m tests.benchmarks.modelopt_fastnas --macs N --out FOLDER

Started by `agents_peers`, which reads `FOLDER/found.json` and `FOLDER/weights.safetensors`. What
the peer is given: the bound as FLOPs (it counts two for each multiply-add), the calibration images
for its own BatchNorm calibration, and the accuracy on our proxies' images as its score. Its widths
are even numbers, as ours are, near its usual steps of a twentieth. It finds by itself that the
padded shortcuts leave only the inner widths to search.

That environment is apart because the peer pins what we do not: `python -m venv PEER`, a `.pth` file
in it that names this project's site-packages, and `pip install --no-deps nvidia-modelopt==0.47.0
torchprofile==0.0.4 requests huggingface_hub httpx2 pulp omegaconf antlr4-python3-runtime==4.9.3`.

Reference:
    https://nvidia.github.io/Model-Optimizer/ (nvidia-modelopt 0.47), `modelopt.torch.prune`.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from search.trial import Fidelity
from tests.benchmarks.agents_world import World
from tests.conftest import real_data_folder
from workers.meters.accuracy import accuracy

DIVISOR = 2
"""Widths are multiples of it, as in `agents_world.THIN`."""

CONVOLUTION = {
    "channels_ratio": tuple(0.05 * i for i in range(1, 21)),
    "kernel_size": (),
    "channel_divisor": DIVISOR,
}
FEATURES = {"features_ratio": tuple(0.05 * i for i in range(1, 21)), "feature_divisor": DIVISOR}
CHECKPOINT = "modelopt.pt"


def pruned(world: World, max_macs: int, count: int, folder: Path) -> tuple[nn.Module, int, float]:
    """Return the peer's network, how often it asked for a score, and its seconds."""
    # Of the peer's environment: ours does not have it.
    peer = importlib.import_module("modelopt.torch.prune")

    context = world.context
    images, labels = context.part(Fidelity.PROXY)
    images, labels = images[:count], None if labels is None else labels[:count]
    dense = context.dense_logits(Fidelity.PROXY)[:count]
    asked = 0

    def score(model: nn.Module) -> float:
        nonlocal asked
        asked += 1
        with torch.inference_mode():
            parts = [context.backend.forward(model, batch) for batch in context.batches(images)]
        logits = torch.cat(parts).numpy()
        return 100 * accuracy(logits, labels, dense, "search")[0].value

    def inputs(batch: Any) -> Tensor:
        assert isinstance(batch, Tensor)
        return batch

    (folder / CHECKPOINT).unlink(missing_ok=True)
    start = time.perf_counter()
    found, _ = peer.prune(
        copy.deepcopy(context.dense),
        mode=[("fastnas", {"nn.Conv2d": {"*": CONVOLUTION}, "nn.BatchNorm2d": {"*": FEATURES}})],
        constraints={"flops": 2 * max_macs},
        dummy_input=torch.zeros(1, *context.spec.model.input_shape),
        config={
            "data_loader": list(context.batches(context.calibration_images)),
            "collect_func": inputs,
            "score_func": score,
            "checkpoint": str(folder / CHECKPOINT),
        },
    )
    return found.eval(), asked, time.perf_counter() - start


def main() -> None:
    """Prune, and leave weights and a note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--macs", type=int, required=True)
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 56))
    parser.add_argument("--images", type=int, default=2000, help="of a score, at most a proxy's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = real_data_folder()
    if data is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    world = World(data, options.work, options.depth, "macs", train_files=1)
    model, asked, seconds = pruned(world, options.macs, options.images, options.out)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(options.out / "weights.safetensors"))
    note = {"version": metadata.version("nvidia-modelopt"), "scores": asked, "search_s": seconds}
    (options.out / "found.json").write_text(json.dumps(note))


if __name__ == "__main__":
    main()
