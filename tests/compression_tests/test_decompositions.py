from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.decisions import FactorizeMethod
from compression.primitives.decompositions import (
    compose,
    decompose,
    relative_error,
)

METHODS: tuple[FactorizeMethod, ...] = get_args(FactorizeMethod)
LARGE_WINDOW: tuple[FactorizeMethod, ...] = ("channel", "spatial", "tucker2", "cp", "kronecker")


def weight(n_out: int, n_in: int, kh: int, kw: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_out, n_in, kh, kw, generator=generator)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("method", ["channel", "spatial"])
def test_the_error_of_a_truncation_is_the_norm_of_the_dropped_singular_values(
    method: FactorizeMethod,
) -> None:
    tensor = weight(6, 5, 3, 2)
    matrix = tensor.flatten(1)
    if method == "spatial":
        matrix = tensor.permute(0, 3, 1, 2).reshape(6 * 2, 5 * 3)
    values = torch.linalg.svdvals(matrix.double())
    made = compose(method, decompose(method, tensor, (4,), generator=generator()), tensor.shape)
    expected = float(values[4:].norm() / values.norm())
    assert relative_error(tensor, made) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "ranks"),
    [("channel", (6,)), ("spatial", (12,)), ("tucker2", (5, 6)), ("kronecker", (12,))],
)
def test_full_rank_is_lossless(method: FactorizeMethod, ranks: tuple[int, ...]) -> None:
    tensor = weight(6, 5, 3, 2)
    made = compose(method, decompose(method, tensor, ranks, generator=generator()), tensor.shape)
    assert relative_error(tensor, made) < 1e-6


def test_kronecker_terms_are_found_again() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    # 9 = 3 x 3 outputs and 16 = 4 x 4 inputs, as the shapes of the factors are chosen.
    made = torch.tensor(np.kron(a[0], b[0]) + np.kron(a[1], b[1]))[:, :, None, None]
    one = decompose("kronecker", made, (1,), generator=generator())
    two = decompose("kronecker", made, (2,), generator=generator())
    assert relative_error(made, compose("kronecker", two, made.shape)) < 1e-10
    assert relative_error(made, compose("kronecker", one, made.shape)) > 0.1


def test_tucker_finds_a_tensor_of_its_ranks() -> None:
    core, out, into = weight(3, 2, 3, 3), weight(8, 3, 1, 1, 1), weight(2, 7, 1, 1, 2)
    tensor = torch.einsum("op,pqxy,qi->oixy", out[:, :, 0, 0], core, into[:, :, 0, 0])
    factors = decompose("tucker2", tensor, (2, 3), generator=generator())
    assert [tuple(f.shape) for f in factors] == [(2, 7, 1, 1), (3, 2, 3, 3), (8, 3, 1, 1)]
    assert relative_error(tensor, compose("tucker2", factors, tensor.shape)) < 1e-6


def test_cp_finds_a_tensor_of_its_rank_and_is_no_worse_at_more() -> None:
    parts = [torch.randn(n, 3, generator=generator()) for n in (8, 7, 3, 3)]
    tensor = torch.einsum("or,ir,xr,yr->oixy", *parts)
    errors = []
    for rank in (1, 2, 3, 6):
        factors = decompose("cp", tensor, (rank,), generator=generator())
        errors.append(relative_error(tensor, compose("cp", factors, tensor.shape)))
    assert errors[0] > errors[1] > errors[2]
    assert max(errors[2:]) < 5e-3


@pytest.mark.parametrize("method", LARGE_WINDOW)
def test_a_weight_of_zeros_has_factors_of_zero_error(method: FactorizeMethod) -> None:
    zeros = torch.zeros(8, 8, 3, 3)
    ranks = (3, 3) if method == "tucker2" else (3,)
    made = compose(method, decompose(method, zeros, ranks, generator=generator()), zeros.shape)
    assert torch.equal(made, zeros.double())


# Chains -------------------------------------------------------------------------------------
