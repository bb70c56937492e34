"""A trained CIFAR ResNet with its data, for benchmarks that drive the engine without a service.

Search-validation is the even half of the test images, held-out test the odd half: the checkpoints
have seen all training images. Calibration inputs are training images.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compression.apply import ApplyContext
from compression.artifact import Preprocessing
from compression.backend import Backend
from compression.export import export_onnx
from compression.models.cifar_resnet import cifar_resnet
from compression.onnx_session import open_session, run_batches
from compression.preprocess import black, preprocess
from compression.recover.batchnorm import recalibrate
from compression.recover.hook import Hook
from compression.recover.statistics import choose_view, seen_as
from compression.recover.training import Curve, Recipe, TrainingData, train
from compression.survey import survey
from search.measurement import Interval
from tests.cifar import MEAN, STD, images, labels, state_dict
from workers.meters.accuracy import accuracy_drop

SHAPE = (3, 32, 32)
PREPROCESSING = Preprocessing(layout="NHWC", scale=255.0, mean=MEAN, std=STD)
CALIBRATION_IMAGES = 1000
BATCH = 250
BACKEND = Backend(channels_last=True, bf16=True)
"""The fastest one on CPUs with bfloat16 instructions, for forward passes and training."""


def chw(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `n x C x H x W` of `n x H x W x C`."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


@dataclasses.dataclass(frozen=True, eq=False)
class CifarEngine:
    """Model, data and apply context.

    Attributes:
        dense: The trained network, eval mode.
        context: For `compression.apply.apply`.
        train_data: All 50,000 training images with labels.
        search: Even half of the test images and their labels.
        test: Odd half.
        statistics: Calibration inputs as BatchNorm is to see them.
    """

    dense: nn.Module
    context: ApplyContext
    train_data: TrainingData
    search: tuple[NDArray[np.uint8], NDArray[np.int64]]
    test: tuple[NDArray[np.uint8], NDArray[np.int64]]
    statistics: Sequence[Tensor]

    @staticmethod
    def build(folder: Path, depth: int, threads: int = 2) -> CifarEngine:
        """Load a ResNet of 20, 32 or 56 layers and CIFAR-10."""
        torch.set_num_threads(threads)
        dense = cifar_resnet(depth)
        dense.load_state_dict(state_dict(folder, f"cifar_resnet{depth}"))
        dense.eval()
        pixels = np.concatenate([chw(images(folder, f"train_{i}")) for i in range(5)])
        known = labels(folder, "train")
        calibration = pixels[:CALIBRATION_IMAGES]
        inputs = list(batches(calibration))
        labelled = [
            (x, torch.from_numpy(known[i * BATCH : (i + 1) * BATCH].copy()))
            for i, x in enumerate(inputs)
        ]
        context = ApplyContext.build(
            dense, survey(dense, SHAPE), SHAPE, batches=labelled, calibration=inputs
        )
        dark = black(PREPROCESSING, 3)
        view = choose_view(dense, lambda: inputs, dark, BACKEND)
        test_pixels, test_labels = chw(images(folder, "test")), labels(folder, "test")
        return CifarEngine(
            dense=dense,
            context=context,
            train_data=TrainingData(images=pixels, labels=known, preprocessing=PREPROCESSING),
            search=(np.ascontiguousarray(test_pixels[::2]), test_labels[::2]),
            test=(np.ascontiguousarray(test_pixels[1::2]), test_labels[1::2]),
            statistics=list(seen_as(inputs, view, dark)),
        )

    @property
    def calibration(self) -> Sequence[Tensor]:
        """Preprocessed calibration batches."""
        return self.context.module.calibration

    def recalibrate(self, model: nn.Module) -> None:
        """Recompute BatchNorm statistics in place."""
        recalibrate(model, self.statistics, BACKEND)

    def recover(
        self,
        model: nn.Module,
        recipe: Recipe,
        hooks: Sequence[Hook] = (),
        seed: int = 0,
        memory: Path | None = None,
    ) -> Curve:
        """Distil from the dense network in place, printing progress, and recalibrate.

        Args:
            model: Trained.
            recipe: How; without mixing of inputs.
            hooks: Beside the loss.
            seed: Of order and augmentation.
            memory: File of the teacher's answers: a second run over the same images with the
                same seed reads what the first one computed.
        """
        dense = copy.deepcopy(self.dense)
        teacher = dense if memory is None else RememberedTeacher(dense, memory)
        curve = train(
            model,
            self.train_data,
            recipe,
            teacher=teacher,
            generator=torch.Generator().manual_seed(seed),
            backend=BACKEND,
            progress=lambda d: (
                print({k: round(v, 4) for k, v in d.items()}, flush=True)
                if int(d["step"]) % 100 == 0
                else None
            ),
            breathe=lambda: None,
            hooks=hooks,
        )
        if isinstance(teacher, RememberedTeacher):
            teacher.save()
        self.recalibrate(model)
        return curve

    def logits(self, model: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `n x 10` outputs of a module, in float32."""
        with torch.inference_mode():
            return np.concatenate([model(x).numpy() for x in batches(pixels)])

    def file_logits(self, onnx: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `n x 10` outputs of a deployed file, on ONNX Runtime."""
        session = open_session(onnx)
        return np.concatenate([run_batches(session, x.numpy()) for x in batches(pixels)])

    def dense_file(self) -> bytes:
        """Return the dense network as the runtime gets it."""
        return export_onnx(self.dense, SHAPE)

    def held_out(self, onnx: bytes) -> tuple[float, Interval]:
        """Return the top-1 of a deployed file on held-out data, and its paired drop, in points."""
        pixels, known = self.test
        found = self.file_logits(onnx, pixels)
        drop = accuracy_drop(found, self.file_logits(self.dense_file(), pixels), known)
        points = Interval(value=100 * drop.value, low=100 * drop.low, high=100 * drop.high)
        return 100 * top1(found, known), points


class RememberedTeacher(nn.Module):
    """Answers call by call what it answered to the same inputs before, if it did."""

    def __init__(self, dense: nn.Module, memory: Path) -> None:
        super().__init__()
        self.dense = dense
        self._memory = memory
        self._calls = 0
        self._known: list[tuple[float, Tensor]] = torch.load(memory) if memory.exists() else []

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of `x`."""
        mark = float(x.float().sum())
        if self._calls < len(self._known):
            known, logits = self._known[self._calls]
            if abs(known - mark) > 1e-3 * abs(mark) + 1.0:
                raise ValueError(f"Call {self._calls} is of other inputs than those remembered")
        else:
            logits = self.dense(x).float()
            self._known.append((mark, logits))
        self._calls += 1
        return logits

    def save(self) -> None:
        """Write down what is known."""
        draft = self._memory.with_suffix(".draft")
        torch.save(self._known, draft)
        draft.replace(self._memory)


def batches(pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
    """Yield preprocessed inputs."""
    for start in range(0, len(pixels), BATCH):
        yield preprocess(pixels[start : start + BATCH], PREPROCESSING)


def top1(logits: NDArray[np.float32], known: NDArray[np.int64]) -> float:
    """Return the share of right first choices."""
    return float((logits.argmax(1) == known).mean())
