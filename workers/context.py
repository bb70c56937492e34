"""What a warm worker keeps in memory between the trials of one job."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compression.apply import ApplyContext
from compression.artifact import Digest
from compression.backend import Backend, choose_backend
from compression.catalogue import SELECTORS
from compression.container import encode_onnx
from compression.export import export_onnx
from compression.models.registry import load_model
from compression.onnx_session import open_session, run_batches
from compression.plan import canonical_json
from compression.preprocess import Images, black, preprocess
from compression.recover.batchnorm import recalibrate
from compression.recover.statistics import View, choose_view, seen_as
from compression.survey import survey
from compression.surveyed import Survey
from search.device import DeviceSpec
from search.measurement import Reading
from search.metric import METRICS
from search.trial import Fidelity
from workers.datasets.dataset import Dataset
from workers.datasets.load import load_dataset
from workers.job import JobSpec
from workers.meters.size import download_bytes, resident_bytes
from workers.quiet import QuietNode
from workers.store import ArtifactStore

if TYPE_CHECKING:
    from workers.bases import Base

BATCH_IMAGES = 250
"""Images per forward pass: large enough to fill one core, small enough to stay in its cache."""

GRADIENT_BATCHES = 4

VIEW_IMAGES = 500
"""Calibration images by which it is seen how the dense model was trained."""


class JobContext:
    """The job's model, data and everything derived from them once.

    Attributes:
        spec: The job.
        store: Where blobs are read and written.
        quiet: Lets timing have the node to itself.
        dense: The original model, eval mode; never changed.
        bases: What trials started from lately, by digest; `workers.bases` fills it.
    """

    def __init__(self, spec: JobSpec, store: ArtifactStore, quiet: QuietNode) -> None:
        self.spec = spec
        self.store = store
        self.quiet = quiet
        weights = store.get(spec.model.weights) if spec.model.weights else None
        self.dense: nn.Module = load_model(spec.model, weights, spec.code_dir)
        self.bases: OrderedDict[Digest, Base] = OrderedDict()

    @classmethod
    def build(cls, spec: JobSpec, store: ArtifactStore, quiet: QuietNode) -> JobContext:
        """Load the model; everything else is made when first needed."""
        return cls(spec, store, quiet)

    @cached_property
    def survey(self) -> Survey:
        """Sites and costs of the dense model."""
        return survey(self.dense, self.spec.model.input_shape)

    @cached_property
    def data(self) -> Dataset:
        """The whole dataset, decoded."""
        model = self.spec.model
        return load_dataset(
            self.spec.dataset,
            self.store,
            layout=model.preprocessing.layout,
            input_shape=model.input_shape,
            num_classes=model.num_classes or None,
        )

    def inputs(self, images: Images) -> torch.Tensor:
        """Return network inputs, float32 NCHW, of stored images."""
        return preprocess(images, self.spec.model.preprocessing)

    def batches(self, images: Images) -> Iterator[torch.Tensor]:
        """Yield network inputs in order, `BATCH_IMAGES` at a time."""
        for start in range(0, len(images), BATCH_IMAGES):
            yield self.inputs(images[start : start + BATCH_IMAGES])

    @cached_property
    def backend(self) -> Backend:
        """The fastest way to run the dense model on this node whose outputs agree.

        Measured once per node and model and kept in the node's folder: arithmetic differs in the
        last bits between backends, so every attempt of a job on this node must use the same one.
        """
        name = hashlib.sha256(canonical_json(self.spec.model.to_json()).encode()).hexdigest()
        note = self.quiet.folder / f"backend-{name[:32]}.json"
        with contextlib.suppress(FileNotFoundError):
            return Backend(**json.loads(note.read_text()))
        images, _ = self.data.part("calibration")
        batch = self.inputs(images[:BATCH_IMAGES])
        with self.quiet.alone():
            if not note.exists():
                backend = choose_backend(self.dense, batch)
                draft = note.with_suffix(f".{os.getpid()}")
                draft.write_text(json.dumps(dataclasses.asdict(backend)))
                draft.replace(note)
        return Backend(**json.loads(note.read_text()))

    @cached_property
    def calibration_images(self) -> Images:
        """Stored images for BatchNorm recalibration and activation ranges."""
        images, _ = self.data.part("calibration")
        return images[: self.spec.scoring.recalibration_images]

    @cached_property
    def _statistics_view(self) -> View:
        images = self.calibration_images[:VIEW_IMAGES]
        return choose_view(self.dense, lambda: self.batches(images), self._black, self.backend)

    @cached_property
    def _black(self) -> torch.Tensor:
        return black(self.spec.model.preprocessing, self.spec.model.input_shape[0])

    def recalibrate(self, model: nn.Module) -> None:
        """Recompute a model's BatchNorm statistics on the calibration images, in place.

        The images are shown as the dense model saw its own in training: plain or as crops,
        whichever leaves the dense model's outputs what they were.
        """
        batches = self.batches(self.calibration_images)
        recalibrate(model, seen_as(batches, self._statistics_view, self._black), self.backend)

    @cached_property
    def apply_context(self) -> ApplyContext:
        """Dependency graph and channel rankings of the dense model."""
        return self.context_of(self.dense, self.survey)

    def context_of(self, model: nn.Module, surveyed: Survey) -> ApplyContext:
        """Return what plans are applied with to a network for the job's task.

        Args:
            model: The dense model, or what training made of a smaller one.
            surveyed: Its survey.
        """
        batches = None
        labelled = any(SELECTORS[name].needs_labels for name in self.spec.methods.selectors)
        if labelled and self.data.labels is not None:
            images, labels = self.data.part("train")
            batches = [
                (
                    self.inputs(images[i * BATCH_IMAGES : (i + 1) * BATCH_IMAGES]),
                    torch.from_numpy(labels[i * BATCH_IMAGES : (i + 1) * BATCH_IMAGES].copy()),
                )
                for i in range(min(GRADIENT_BATCHES, len(images) // BATCH_IMAGES or 1))
                if labels is not None
            ]
        return ApplyContext.build(
            model,
            surveyed,
            self.spec.model.input_shape,
            batches=batches,
            calibration=self._calibration_inputs(),
            seed=self.spec.seed,
        )

    def _calibration_inputs(self) -> list[torch.Tensor]:
        """Preprocessed calibration images, where a method of the job looks at activations."""
        methods = self.spec.methods
        selects = any(SELECTORS[name].needs_inputs for name in methods.selectors)
        selects |= methods.refit != "none"
        if not selects and set(methods.allow) <= {"drop_block", "prune_channels", "quantize"}:
            return []
        return list(self.batches(self.calibration_images))

    @cached_property
    def dense_onnx(self) -> bytes:
        """The dense model as the runtime gets it, float32: the baseline of every timing."""
        return export_onnx(self.dense, self.spec.model.input_shape)

    @cached_property
    def dense_download_bytes(self) -> Reading:
        """Coded size of the dense file."""
        return download_bytes(encode_onnx(self.dense_onnx))

    @cached_property
    def dense_resident_bytes(self) -> Reading:
        """Memory that loading the dense file adds to a process."""
        return resident_bytes(self.dense_onnx)

    def part(self, fidelity: Fidelity) -> tuple[Images, NDArray[np.int64] | None]:
        """Return the images and labels that a rung is scored on."""
        if fidelity is Fidelity.CONFIRMED:
            return self.data.part("test")
        images, labels = self.data.part("search")
        if fidelity is Fidelity.FULL:
            return images, labels
        count = self.spec.scoring.proxy_images
        return images[:count], None if labels is None else labels[:count]

    def dense_logits(self, fidelity: Fidelity) -> NDArray[np.float32]:
        """Return the dense model's outputs on a rung's images, computed once."""
        if fidelity not in self._dense_logits:
            images, _ = self.part(fidelity)
            self._dense_logits[fidelity] = self.score_file(self.dense_onnx, images)
        return self._dense_logits[fidelity]

    @cached_property
    def _dense_logits(self) -> dict[Fidelity, NDArray[np.float32]]:
        return {}

    def score_module(self, model: nn.Module, images: Images) -> NDArray[np.float32]:
        """Return `n x classes` float32 outputs of a torch model, on the job's backend."""
        # A copy: the layout that is fast here changes how the original rounds.
        model = self.backend.prepare(copy.deepcopy(model))
        outputs = []
        with torch.inference_mode():
            for batch in self.batches(images):
                self.quiet.breathe()
                outputs.append(self.backend.forward(model, batch).numpy())
        return np.concatenate(outputs)

    def score_file(self, onnx: bytes, images: Images) -> NDArray[np.float32]:
        """Return `n x classes` float32 outputs of a deployed file, on ONNX Runtime."""
        session = open_session(onnx)
        outputs = []
        for batch in self.batches(images):
            self.quiet.breathe()
            outputs.append(run_batches(session, batch.numpy()))
        return np.concatenate(outputs)

    def named(self, metric: str) -> bool:
        """Whether an objective or a constraint names the metric."""
        names = {o.metric for o in self.spec.objectives} | {c.metric for c in self.spec.constraints}
        return metric in names

    def timed_devices(self) -> list[DeviceSpec]:
        """Return the devices that an objective or a constraint names."""
        objectives = {o.device for o in self.spec.objectives if METRICS[o.metric].timed}
        bounds = {c.device for c in self.spec.constraints if METRICS[c.metric].timed}
        wanted = objectives | bounds
        return [device for device in self.spec.devices if device.name in wanted]
