from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import (
    LogConstrainedExpectedImprovement,
    LogProbabilityOfFeasibility,
)
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.integrate import quad
from scipy.stats import norm

from search.arithmetic import Floats
from search.one_thread import one_thread
from search.repair import Repair
from search.sampling import draw
from search.surrogate.acquisition import log_h, log_merit
from search.surrogate.candidates import Candidates
from search.surrogate.evidence import log_posterior
from search.surrogate.features import Features, as_log_odds, bilog, chebyshev
from search.surrogate.gp import Surrogate, fit
from tests.synthetic import Net


def sample(t: int = 25, f: int = 3, seed: int = 0) -> tuple[Floats, ...]:
    rng = np.random.default_rng(seed)
    x = rng.random((t, f))
    y = np.column_stack([np.sin(5 * x[:, 0]) + x[:, 1], 40 + 9 * x[:, 2] ** 2])
    return x, y + 0.01 * rng.normal(size=y.shape)


def by_hand(surrogate: Surrogate, output: int, x: Floats, y: Floats, new: Floats) -> Floats:
    """The posterior from the textbook: k(X, X) + s^2 I solved, with the Matérn-5/2 formula."""
    model = surrogate.model

    def pick(value: torch.Tensor) -> torch.Tensor:
        return (value[output] if surrogate.outputs > 1 else value).detach()

    lengths = pick(model.covar_module.lengthscale).numpy().reshape(1, -1)
    noise = float(pick(model.likelihood.noise).reshape(-1)[0])
    constant = float(pick(model.mean_module.constant))

    def kernel(a: Floats, b: Floats) -> Floats:
        r = np.sqrt((((a / lengths)[:, None] - (b / lengths)[None]) ** 2).sum(-1))
        k = (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)
        return np.asarray(k)

    targets = (y[:, output] - surrogate.mean[output]) / surrogate.scale[output] - constant
    gram = kernel(x, x) + noise * np.eye(len(x))
    cross = kernel(new, x)
    mean = constant + cross @ np.linalg.solve(gram, targets)
    variance = 1 - np.einsum("ij,ji->i", cross, np.linalg.solve(gram, cross.T))
    scale = surrogate.scale[output]
    return np.stack([mean * scale + surrogate.mean[output], np.sqrt(variance) * scale])


@pytest.mark.parametrize("outputs", [1, 2])
def test_posterior_is_the_closed_form(outputs: int) -> None:
    x, y = sample(t=3 if outputs == 1 else 12)
    surrogate = fit(x, y[:, :outputs], max_iterations=5)
    new = np.random.default_rng(1).random((6, 3))
    mean, deviation = surrogate.predict(new)
    for output in range(outputs):
        expected = by_hand(surrogate, output, x, y, new)
        np.testing.assert_allclose(mean[:, output], expected[0], rtol=1e-6)
        np.testing.assert_allclose(deviation[:, output], expected[1], rtol=1e-4)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


def test_one_thread_is_given_back() -> None:
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_learns_a_smooth_function() -> None:
    x, y = sample(t=40)
    new, truth = sample(t=50, seed=9)
    mean, _ = fit(x, y, max_iterations=20).predict(new)
    error = np.sqrt(((mean - truth) ** 2).mean(axis=0))
    assert (error < 0.15 * truth.std(axis=0)).all()


def test_outputs_are_independent() -> None:
    x, y = sample()
    new = np.random.default_rng(2).random((5, 3))
    together, _ = fit(x, y, max_iterations=10).predict(new)
    alone, _ = fit(x, y[:, 1:], max_iterations=10).predict(new)
    np.testing.assert_allclose(together[:, 1], alone[:, 0], rtol=1e-2)


def test_fitting_twice_gives_the_same() -> None:
    x, y = sample(t=8)
    state = torch.random.get_rng_state()
    first, second = (fit(x, y, max_iterations=5) for _ in range(2))
    new = np.random.default_rng(3).random((7, 3))
    np.testing.assert_array_equal(first.predict(new)[0], second.predict(new)[0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_default_dtype() is torch.float32


def test_many_predictions_are_the_same_as_few() -> None:
    x, y = sample()
    surrogate = fit(x, y, max_iterations=3)
    new = np.random.default_rng(4).random((600, 3))
    np.testing.assert_allclose(
        surrogate.predict(new)[0][590:], surrogate.predict(new[590:])[0], rtol=1e-8
    )


def test_constant_outputs_and_repeated_inputs() -> None:
    x = np.repeat(np.random.default_rng(5).random((4, 3)), 3, axis=0)
    surrogate = fit(x, np.full((12, 2), 7.0), max_iterations=5)
    mean, deviation = surrogate.predict(x)
    np.testing.assert_allclose(mean, 7.0, atol=1e-6)
    assert np.isfinite(deviation).all()


def test_the_posterior_of_parameters_is_gpytorchs() -> None:
    x, y = sample(t=12)
    surrogate = fit(x, y[:, :1], max_iterations=5)
    process = surrogate.processes[0]
    theta = np.append(process.parameters.lengths, process.parameters.noise)
    model = surrogate.model.train()
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    theirs = float(likelihood(model(process.x), process.y).detach())
    value, gradient = log_posterior(process.x, process.y, np.log(theta))
    assert value / len(x) == pytest.approx(theirs, rel=1e-6)
    for number in range(len(theta)):
        step = np.zeros(len(theta))
        step[number] = 1e-5
        up, _ = log_posterior(process.x, process.y, np.log(theta) + step)
        down, _ = log_posterior(process.x, process.y, np.log(theta) - step)
        assert gradient[number] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-5)


def test_draws_have_the_posteriors_mean_and_deviation() -> None:
    x, y = sample(t=15)
    surrogate = fit(x, y, max_iterations=10)
    new = np.random.default_rng(8).random((5, 3))
    draws = surrogate.sample(new, np.random.default_rng(9), 4000)
    mean, deviation = surrogate.predict(new)
    assert draws.shape == (4000, 5, 2)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=4 * deviation.max() / 60)
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.06, atol=1e-3)
    # Neighbours rise and fall together.
    pair = np.array([new[0], new[0] + 0.01])
    together = surrogate.sample(pair, np.random.default_rng(9), 500)[:, :, 0]
    assert np.asarray(np.corrcoef(together.T))[0, 1] > 0.9


@pytest.mark.parametrize("outputs", [1, 2])
def test_believing_lowers_the_doubt_and_keeps_the_mean(outputs: int) -> None:
    x, y = sample(t=10)
    surrogate = fit(x, y[:, :outputs], max_iterations=5)
    pending = np.array([[0.9, 0.1, 0.95], [0.05, 0.5, 0.5]])
    after = surrogate.believing(pending)
    (mean, before), (kept, lower) = surrogate.predict(pending), after.predict(pending)
    np.testing.assert_allclose(kept, mean, rtol=1e-6)
    assert (lower < 0.9 * before).all()
    assert surrogate.believing(pending[:0]) is surrogate


def test_expected_improvement_is_its_integral() -> None:
    for mean, deviation, best in ((0.3, 0.5, 0.1), (-1.0, 0.2, 0.0), (2.0, 0.7, 0.5)):
        truth, _ = quad(
            lambda f, mean, deviation, best: (best - f) * norm.pdf(f, mean, deviation),
            best - 12 * deviation,
            best,
            args=(mean, deviation, best),
        )
        merit = log_merit(np.array([[mean]]), np.array([[deviation]]), best=best, limits=[])
        assert np.exp(merit[0]) == pytest.approx(truth, rel=1e-6)


def test_log_h_is_smooth_and_finite_far_into_the_tail() -> None:
    z = np.concatenate([-np.logspace(8, -3, 4000), np.logspace(-3, 2, 500)])
    values = log_h(z)
    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()
    # h(z) ~ phi(z) / z^2 for z -> -inf.
    asymptote = -(np.array([-50.0]) ** 2) / 2 - np.log(2 * np.pi) / 2 - 2 * np.log(50.0)
    np.testing.assert_allclose(log_h(np.array([-50.0])), asymptote, rtol=1e-5)


def test_merit_is_botorchs() -> None:
    x, y = sample()
    surrogate = fit(x, y, max_iterations=5)
    new = np.random.default_rng(6).random((40, 3))
    best, limit = float(np.quantile(y[:, 0], 0.2)), 43.0
    bound: dict[int, tuple[float | None, float | None]] = {
        1: (None, (limit - surrogate.mean[1]) / surrogate.scale[1])
    }
    goal = (best - surrogate.mean[0]) / surrogate.scale[0]
    theirs = LogConstrainedExpectedImprovement(
        surrogate.model, best_f=goal, objective_index=0, constraints=bound, maximize=False
    )
    inputs = torch.as_tensor(new).unsqueeze(1)
    ours = log_merit(*surrogate.predict(new), best=best, limits=[limit])
    expected = theirs(inputs).detach().numpy() + np.log(surrogate.scale[0])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    chance = log_merit(*surrogate.predict(new), best=None, limits=[limit])
    expected = LogProbabilityOfFeasibility(surrogate.model, bound)(inputs).detach().numpy()
    np.testing.assert_allclose(chance, expected, rtol=1e-4, atol=1e-4)


def test_merit_wants_one_limit_per_constraint() -> None:
    with pytest.raises(ValueError, match="2 outputs and 2 limits"):
        log_merit(np.zeros((1, 2)), np.ones((1, 2)), best=0.0, limits=[1.0, 1.0])


def test_features_are_shares_choices_and_costs() -> None:
    net = Net(d=4, selectors=("l1", "l2", "taylor"))
    problem = net.problem()
    features = Features(problem)
    points = draw(problem.space, np.random.default_rng(7), 50)
    points[0], points[1] = problem.space.dense(), problem.space.smallest()
    table = features.with_costs(points)
    np.testing.assert_array_equal(table[:, :7], features.decisions(points))
    # 4 widths, 2 of 3 selectors, 1 of 2 precisions, 3 costs.
    assert table.shape == (50, 10)
    assert table.min() >= 0
    assert table.max() <= 1
    np.testing.assert_allclose(table[0], [1, 1, 1, 1, 0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(table[1], [0, 0, 0, 0, 0, 0, 1, 0, 0, 0], atol=1e-12)


def test_bilog_keeps_sign_and_order() -> None:
    values = np.array([-5.0, -0.1, 0.0, 0.1, 5.0])
    assert (np.diff(bilog(values)) > 0).all()
    np.testing.assert_allclose(bilog(values), -bilog(-values))
    assert bilog(np.array([np.e - 1]))[0] == pytest.approx(1.0)


def test_chebyshev_by_hand() -> None:
    losses = np.array([[0.0, 10.0], [1.0, 0.0], [0.5, 5.0]])
    # Scaled to [0, 1]: (0, 1), (1, 0), (0.5, 0.5); weights 0.25 and 0.75.
    expected = [0.75 + 0.05 * 0.75, 0.25 + 0.05 * 0.25, 0.375 + 0.05 * 0.5]
    np.testing.assert_allclose(chebyshev(losses, np.array([0.25, 0.75])), expected)


def test_accuracies_as_log_odds_keep_their_order_and_are_finite() -> None:
    losses = -np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    odds = as_log_odds(losses)
    assert np.isfinite(odds).all()
    assert (np.diff(odds) < 0).all()
    assert odds[2] == pytest.approx(0.0)
    assert odds[1] == pytest.approx(-odds[3])


def test_a_climb_at_a_bound_may_widen_one_knob_at_the_cost_of_another() -> None:
    problem = Net(d=5).problem()
    candidates = Candidates(problem, Repair(problem), 64)
    centre = problem.space.uniform(0.5)
    steps = candidates.steps(centre, np.zeros(0), np.random.default_rng(0))
    moves = steps - np.array(centre)
    assert ((moves != 0).sum(axis=1) <= 2).all()
    assert ((moves > 0).any(axis=1) & (moves < 0).any(axis=1)).any()
    assert (steps >= 0).all()
    assert (steps < candidates.counts).all()
