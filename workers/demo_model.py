"""Process: trains the demo's digits network and writes its weights; prints one JSON line.

Usage: `python -m workers.demo_model --out digits.safetensors`. The split is the one that
registering the built-in dataset `digits` gives, so the held-out images stay unseen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from compression.models.digits_training import DIGITS_PREPROCESSING, train_digits
from compression.preprocess import preprocess
from workers.datasets.load import load_dataset
from workers.job import DatasetArtifact
from workers.store import FolderStore


def main() -> None:
    """Train, score on the held-out part, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    artifact = DatasetArtifact(data=None, format="builtin", name="digits")
    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset(artifact, FolderStore(Path(folder)), layout="NCHW")
    images, labels = data.part("train")
    held_out, expected = data.part("test")
    assert labels is not None
    assert expected is not None
    start = time.perf_counter()
    model = train_digits(images.astype(np.uint8), labels, seed=arguments.seed)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        found = model(preprocess(held_out, DIGITS_PREPROCESSING)).argmax(1).numpy()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, arguments.out)
    report = {
        "accuracy": float((found == expected).mean()),
        "held_out_images": len(expected),
        "seconds": round(seconds, 1),
        "input_shape": [1, 8, 8],
        "preprocessing": dataclasses.asdict(DIGITS_PREPROCESSING),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
