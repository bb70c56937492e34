"""What the deployed file does on the runtimes of the job's devices: its decisions and accuracy.

The accuracies of a front are those of ONNX Runtime, whatever devices a job names: then results of
different jobs, and of one job on several devices, are of one kind. Here every other runtime that
the job is timed on is held to that: it must decide alike, and what it scores on the held-out
images is stated beside it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from compression.errors import NotCertified
from compression.preprocess import Images
from search.device import DeviceSpec
from search.measurement import Reading
from search.trial import Fidelity
from workers.context import JobContext
from workers.meters import RUNTIMES, open_runtime
from workers.meters.accuracy import accuracy

REFERENCE = "onnxruntime"
"""The runtime whose accuracies are the front's."""

FLOAT_DIFFERENCE = 1e-3
"""Largest difference of float outputs to the reference's, over their largest size. Runtimes add up
in different orders and choose Winograd convolutions: 1e-5 is common, 1e-2 is another precision."""

FLOAT_AGREEMENT = 0.99
"""Least share of inputs on which a float file must decide as on the reference."""

INT8_AGREEMENT = 0.9
"""The same of an INT8 file, whose roundings each runtime does in its own way."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """A deployed file as one device's runtime computes it, on this machine.

    Attributes:
        device: Name.
        runtime: Name in `workers.meters.RUNTIMES`.
        agreement: Share of the search images on which it decides like the reference.
        difference: Largest difference of outputs to the reference's, over their largest size.
        readings: Accuracies on the held-out images.
    """

    device: str
    runtime: str
    agreement: float
    difference: float
    readings: tuple[Reading, ...]


def runtimes_to_check(context: JobContext) -> list[DeviceSpec]:
    """Return a device for every other runtime that the job is timed on and that runs here.

    The file of a board is checked on this machine, by the same runtime.
    """
    found: dict[tuple[str, int], DeviceSpec] = {}
    for device in context.timed_devices():
        entry = RUNTIMES.get(device.runtime)
        if device.place == "virtual" or device.runtime == REFERENCE or entry is None:
            continue
        if entry.installed:
            # Threads change nothing; the batch is part of some runtimes' files.
            one_thread = dataclasses.replace(device, threads=1)
            found.setdefault((device.runtime, device.batch), one_thread)
    return list(found.values())


def outputs_on(
    device: DeviceSpec, onnx: bytes, context: JobContext, *parts: Images
) -> list[NDArray[np.float32]]:
    """Return `n x classes` float32 outputs of a file on a device's runtime, for each part.

    Raises:
        FileRefused: The runtime cannot run the file.
    """
    with open_runtime(device.runtime, threads=device.threads, seed=0) as runtime:
        model = runtime.load(runtime.build(onnx, device.batch), device.batch)

        def outputs(images: Images) -> NDArray[np.float32]:
            found = []
            for batch in context.batches(images):
                context.quiet.breathe()
                found.append(model.outputs(batch.numpy()))
            return np.concatenate(found)

        return [outputs(images) for images in parts]


def check_on_device(
    device: DeviceSpec,
    onnx: bytes,
    context: JobContext,
    *,
    integers: bool,
) -> OnDevice:
    """Compare a file on a device's runtime with the reference, and score it there.

    Args:
        device: From `runtimes_to_check`.
        onnx: The deployed file.
        context: Of the job.
        integers: Whether the file computes in INT8.

    Raises:
        NotCertified: It decides otherwise than on the reference, more often than is allowed.
        FileRefused: The runtime cannot run the file.
    """
    probe, _ = context.part(Fidelity.PROXY)
    held_out, labels = context.part(Fidelity.CONFIRMED)
    expected = context.score_file(onnx, probe)
    found, logits = outputs_on(device, onnx, context, probe, held_out)
    scale = float(np.abs(expected).max()) or 1.0
    difference = float(np.abs(found - expected).max()) / scale
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    least = INT8_AGREEMENT if integers else FLOAT_AGREEMENT
    # Written so that outputs which are no numbers fail, too.
    if not agreement >= least:
        raise NotCertified(
            f"On {device.name} the deployed file decides like on ONNX Runtime on {agreement:.1%} "
            f"of {len(probe)} search images; {least:.0%} is required"
        )
    if not integers and not difference <= FLOAT_DIFFERENCE:
        raise NotCertified(
            f"On {device.name} the deployed file's outputs differ from ONNX Runtime's by "
            f"{difference:.1e} of their size; {FLOAT_DIFFERENCE:.0e} is allowed"
        )
    return OnDevice(
        device=device.name,
        runtime=device.runtime,
        agreement=agreement,
        difference=difference,
        readings=tuple(accuracy(logits, labels, context.dense_logits(Fidelity.CONFIRMED), "test")),
    )
