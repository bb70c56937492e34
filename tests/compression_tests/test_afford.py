from __future__ import annotations

import pytest

from compression.afford import INPUT_SELECTORS, LABELLED_SELECTORS, Means, affordable
from compression.catalogue import SELECTORS
from compression.errors import PlanInvalid
from compression.methods import Methods


def test_the_lists_are_what_the_selectors_say() -> None:
    assert {name for name, s in SELECTORS.items() if s.needs_labels} == LABELLED_SELECTORS
    assert {name for name, s in SELECTORS.items() if s.needs_inputs} == INPUT_SELECTORS


def test_everything_is_affordable_with_everything() -> None:
    methods = Methods(
        allow=("prune_channels", "factorize", "sparsify", "quantize"),
        selectors=("l2", "taylor"),
        factorize=("spatial 0.5 whitened",),
    )
    assert affordable(methods, Means()) == (methods, ())


def test_what_needs_labels_goes_without_labels_and_says_so() -> None:
    kept, notes = affordable(Methods(selectors=("taylor", "l1")), Means(labels=False))
    assert kept.selectors == ("l1",)
    assert notes == ("selector 'taylor' is left out: the dataset has no labels",)
    kept, _ = affordable(Methods(selectors=("taylor",)), Means(labels=False))
    assert kept.selectors == ("l2",)


def test_what_looks_at_activations_goes_without_calibration_images() -> None:
    methods = Methods(
        allow=("prune_channels", "factorize", "sparsify", "quantize"),
        factorize=("spatial 0.5", "svd 0.5 whitened"),
        sparsify=("0.5 obs",),
    )
    kept, notes = affordable(methods, Means(calibration=0))
    assert kept.allow == ("prune_channels", "factorize")
    assert kept.factorize == ("spatial 0.5",)
    assert len(notes) == 4
    assert "method 'quantize' is left out: there are no calibration images" in notes


def test_a_job_left_with_nothing_is_refused() -> None:
    with pytest.raises(PlanInvalid, match="No method is left: method 'quantize'"):
        affordable(Methods(allow=("quantize",)), Means(calibration=0))


def test_integers_are_not_searched_for_a_device_that_cannot_run_them() -> None:
    means = Means(float_only=("local/torch", "board/kitchen"))
    kept, notes = affordable(Methods(allow=("prune_channels", "quantize")), means)
    assert kept.allow == ("prune_channels",)
    assert notes == (
        "method 'quantize' is left out: INT8 files do not run on local/torch, board/kitchen",
    )
    with pytest.raises(PlanInvalid, match="INT8 files do not run on local/torch"):
        affordable(Methods(allow=("quantize",)), means)


def test_a_job_without_training_images_is_told_what_that_means() -> None:
    _, notes = affordable(Methods(), Means(training=0))
    assert notes == ("there are no training images: finalists are recalibrated, not trained",)
