"""The forward passes of every backend agree; the choice leaves the model alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compression.artifact import Preprocessing
from compression.backend import Backend, choose_backend
from compression.models.cifar_resnet import cifar_resnet
from compression.preprocess import preprocess

BACKENDS = [Backend(last, bf16) for last in (False, True) for bf16 in (False, True)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_float32_and_close(backend: Backend) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(20).eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        found = backend.forward(backend.prepare(model), x)
    assert found.dtype == torch.float32
    tolerance = 0.05 if backend.bf16 else 1e-4
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_choice_leaves_the_model_as_it_was() -> None:
    model = cifar_resnet(20).eval()
    before = {key: (value.clone(), value.stride()) for key, value in model.state_dict().items()}
    backend = choose_backend(model, torch.randn(8, 3, 32, 32))
    assert backend in BACKENDS
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key][0])
        assert value.stride() == before[key][1]


class RoundingMatters(nn.Module):
    """Its choice between two classes hangs on digits that bfloat16 does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x.flatten(1)).float()
        # bfloat16 rounds the inputs of 1 + 1.9/512 below to 1, which is less than this bound.
        return torch.cat([out, torch.full_like(out, 1 + 1 / 512)], dim=1)


def test_a_disagreeing_backend_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RoundingMatters().eval()
    nn.init.ones_(model.linear.weight)
    x = torch.full((64, 1, 1, 1), 1 + 1.9 / 512)
    with torch.inference_mode():
        assert not Backend().forward(model, x).argmax(1).any()
        assert Backend(bf16=True).forward(model, x).argmax(1).all()
    # Whatever the clock says: here every next backend looks faster than all before it.
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: -float(next(clock) ** 2))
    assert choose_backend(model, x) == Backend(channels_last=True, bf16=False)


def test_preprocessing_by_hand() -> None:
    pre = Preprocessing(scale=255.0, mean=(0.5, 0.0), std=(0.5, 2.0))
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1)
    assert preprocess(images, pre).flatten().tolist() == [-1.0, 0.5]
    shared = images.numpy()
    shared.setflags(write=False)
    assert torch.equal(preprocess(shared, pre), preprocess(images, pre))
    one_for_all = Preprocessing(scale=1.0, mean=(1.0,), std=(2.0,))
    floats = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1).numpy()
    assert preprocess(floats, one_for_all).flatten().tolist() == [1.0, 2.0]
