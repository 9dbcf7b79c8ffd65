"""Each estimator against autograd through one unrolled SGD step, and a known optimum."""

import dataclasses
import typing

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.config import HypergradientConfig, MixtureConfig
from megatron_fastmix.hypergradient import (
    ESTIMATORS,
    Probe,
    Products,
    SampleProducts,
    noise_to_signal,
    target_gradient,
)
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters
from tests.cases import slow


class Regression(torch.nn.Module):
    """A two-layer network whose last layer is marked, as the proxy's output layer is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = torch.nn.Linear(4, 8)
        self.output = torch.nn.Linear(8, 1)
        for parameter in self.output.parameters():
            parameter.is_output_layer = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(torch.tanh(self.hidden(x))).squeeze(-1)


def batch(generator, group):
    """Inputs in `tokens`, the regression's values in `labels`."""
    x = torch.tensor(generator.normal(size=(len(group), 4)), dtype=torch.float32)
    y = torch.tensor(generator.normal(size=len(group)) + np.asarray(group), dtype=torch.float32)
    group = np.asarray(group)
    return Batch(
        tokens=x,
        labels=y,
        loss_mask=torch.ones(len(group)),
        index=np.maximum(group, 0),
        role=np.where(group >= 0, Role.SOURCE, Role.PADDING),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A target and the probe that its gradient is multiplied with."""

    objective: list
    probe: Probe

    @property
    def parameters(self):
        return self.probe.parameters

    def v(self):
        return target_gradient(self.probe.losses, self.probe.parameters, self.objective)

    def products(self, name):
        (found,) = ESTIMATORS[name](self.probe, [self.v()])
        return Products.mean_by_source(found, self.probe.num_sources, DataParallelGroup())


def problem_of(model, losses, objective, probe, *, relative_step=1e-4):
    return Problem(
        objective=objective,
        probe=Probe(
            batches=probe,
            losses=losses,
            model=model,
            parameters=Parameters(list(model.parameters()), DataParallelGroup()),
            num_sources=3,
            relative_step=relative_step,
        ),
    )


def squared(model):
    return lambda batch: (model(batch.tokens) - batch.labels).square().double()


@pytest.fixture
def problem():
    generator = np.random.default_rng(1)
    target = batch(generator, [0] * 6)
    probe = [batch(generator, [0, 1, 2, 0, 1, 2]), batch(generator, [2, 1, 0, 2, -1, -1])]
    model = Regression()
    return problem_of(model, squared(model), [(target, torch.full((6,), 1 / 6))], probe)


def unrolled_gradient(problem, inner_lr):
    """∂/∂α of the target loss after one SGD step on Σ α_k L_k, by autograd through the step."""
    parameters = problem.parameters.parameters
    alpha = torch.full((3,), 1 / 3, dtype=torch.float64, requires_grad=True)
    losses = [problem.probe.losses(b) for b in problem.probe.batches]
    source = np.concatenate(
        [np.where(b.of(Role.SOURCE), b.index, -1) for b in problem.probe.batches]
    )
    flat = torch.cat(losses)
    per_source = torch.stack([flat[torch.from_numpy(source == k)].mean() for k in range(3)])
    step = torch.autograd.grad((alpha * per_source).sum(), parameters, create_graph=True)
    moved = [p - inner_lr * g for p, g in zip(parameters, step, strict=True)]
    ((target, weights),) = problem.objective
    x = torch.tanh(torch.nn.functional.linear(target.tokens, moved[0], moved[1]))
    prediction = torch.nn.functional.linear(x, moved[2], moved[3]).squeeze(-1)
    loss = ((prediction - target.labels).square().double() * weights).sum()
    return torch.autograd.grad(loss, alpha)[0].numpy()


@pytest.mark.parametrize(
    ("name", "tolerance"), [("one_pass", 1e-4), ("per_source", 1e-4), ("finite_difference", 2e-3)]
)
def test_products_give_the_derivative_of_one_unrolled_step(problem, name, tolerance):
    inner_lr = 1e-5  # one step short enough for the linearisation at θ to be the derivative
    expected = unrolled_gradient(problem, inner_lr)
    products = problem.products(name)
    np.testing.assert_allclose(-inner_lr * products.values, expected, rtol=tolerance)
    assert products.counts.tolist() == [3, 3, 4]


def test_finite_difference_agrees_with_exact_products(problem):
    exact = problem.products("per_source").values
    estimate = problem.products("finite_difference")
    np.testing.assert_allclose(estimate.values, exact, rtol=2e-3)
    assert np.all(estimate.standard_error > 0)


def test_last_layer_sees_the_output_layer_alone(problem):
    products = problem.products("last_layer")
    output = [p for p in problem.parameters.parameters if hasattr(p, "is_output_layer")]
    ((target, weights),) = problem.objective
    v = torch.autograd.grad((problem.probe.losses(target) * weights).sum(), output)
    flat = torch.cat([problem.probe.losses(b) for b in problem.probe.batches])
    source = np.concatenate(
        [np.where(b.of(Role.SOURCE), b.index, -1) for b in problem.probe.batches]
    )
    for k in range(3):
        loss = flat[torch.from_numpy(source == k)].mean()
        gradient = torch.autograd.grad(loss, output, retain_graph=True)
        expected = sum(float((a * b).sum()) for a, b in zip(v, gradient, strict=True))
        assert products.values[k] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_parameters_and_gradients_are_left_bitwise_as_they_were(problem, name):
    parameters = problem.parameters.parameters
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    before = [p.detach().clone() for p in parameters]
    problem.products(name)
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.equal(parameter, old)
        assert torch.all(parameter.grad == 0.5)


def test_parameters_are_restored_when_the_probe_fails(problem):
    before = [p.detach().clone() for p in problem.parameters.parameters]
    v = problem.v()
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        problem.parameters.perturbed_both_ways(v, 1e-3) as mirror,
    ):
        mirror()
        raise RuntimeError("out of memory")
    for parameter, old in zip(problem.parameters.parameters, before, strict=True):
        assert torch.equal(parameter, old)


def test_both_perturbations_are_equally_long_after_rounding(problem):
    parameters = problem.parameters
    before = [p.detach().clone() for p in parameters.parameters]
    v = problem.v()
    with parameters.perturbed_both_ways(v, 1e-3) as mirror:
        ahead = [p.detach().clone() for p in parameters.parameters]
        mirror()
        for parameter, high, old in zip(parameters.parameters, ahead, before, strict=True):
            assert torch.equal(high.double() - old, old.double() - parameter)
            assert not torch.equal(high, old)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_a_source_without_a_sample_is_reported_and_not_moved(problem, name):
    generator = np.random.default_rng(2)
    model = Regression()
    partial = problem_of(model, squared(model), problem.objective, [batch(generator, [0, 2, 0, 2])])
    products = partial.products(name)
    assert products.seen.tolist() == [True, False, True]
    mixture = Mixture(["a", "b", "c"], MixtureConfig())
    mixture.update(-1e-2 * products.values, products.seen)
    assert mixture.logits[1] == 0
    assert mixture.logits[0] != 0


class Point(torch.nn.Module):
    """θ in the plane, itself the prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor([0.1, 0.6]))
        self.theta.is_output_layer = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.theta - x

    def losses(self, batch: Batch) -> torch.Tensor:
        return self(batch.tokens).square().sum(dim=1).double()


def at(points, group):
    return Batch.of_sources(
        np.asarray(group),
        tokens=torch.tensor(points),
        labels=torch.zeros(len(group)),
        loss_mask=torch.ones(len(group)),
    )


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        slow("adam", 0.05),
        slow("sgd", 3.0),
        slow("mirror_descent", 1.0),
        ("scaled_mirror_descent", 0.05),
    ],
)
def test_a_quadratic_is_searched_to_its_known_optimum(name, optimizer, lr):
    """Sources pull θ to three corners, so θ*(α) is their α-weighted mean; the target lies at the
    mean with α = (0.2, 0.5, 0.3), which is the only optimum."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    best = np.array([0.2, 0.5, 0.3])
    model, inner_lr = Point(), 0.1
    problem = problem_of(
        model,
        model.losses,
        [(at((best @ corners)[None].astype(np.float32), [0]), torch.ones(1))],
        [at(corners, [0, 1, 2])],
        relative_step=1e-3,
    )
    config = MixtureConfig(
        optimizer=optimizer, lr=lr, lr_decay_style="linear", averaging_fraction=0.1
    )
    mixture = Mixture(["origin", "right", "up"], config, total_steps=600)
    for _ in range(600):
        for _ in range(10):
            pull = model.theta.detach().numpy() - mixture.weights @ corners
            model.theta.data -= inner_lr * 2 * torch.from_numpy(pull).float()
        products = problem.products(name)
        mixture.update(-inner_lr * products.values)
    np.testing.assert_allclose(mixture.averaged()[0], best, atol=0.02)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_the_standard_error_tells_noise_from_signal(name):
    """Samples of each source scatter around its mean: widely where the estimate must be noise."""
    model, generator = Point(), np.random.default_rng(3)

    def noise(scatter):
        means = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        groups = [0, 1, 2] * 8
        probe = [
            at((means[groups] + scatter * generator.normal(size=(24, 2))).tolist(), groups)
            for _ in range(2)
        ]
        problem = problem_of(
            model, model.losses, [(at([[0.9, 0.3]], [0]), torch.ones(1))], probe, relative_step=1e-3
        )
        return noise_to_signal(problem.products(name), [problem.products(name)])

    assert noise(0.05) < 0.1
    assert noise(20.0) > 0.5


def test_the_configuration_names_the_registered_estimators():
    choices = typing.get_type_hints(HypergradientConfig)["estimator"]
    assert set(typing.get_args(choices)) == ESTIMATORS.keys()


def test_terms_that_share_their_samples_are_no_independent_evidence():
    """Two targets with the same gradient are one target, and two that oppose each other cancel."""
    values = np.random.default_rng(0).normal(size=10)
    one = SampleProducts(values=values, source=np.zeros(10, int), samples=np.ones(10))
    single = Products.mean_by_source(one, 1, DataParallelGroup())
    for factors, expected in (((0.5, 0.5), single.standard_error[0]), ((1.0, -1.0), 0.0)):
        together = SampleProducts.weighted_sum([one, one], factors)
        error = Products.mean_by_source(together, 1, DataParallelGroup()).standard_error
        assert error == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("copies", [1, 4])
def test_a_sample_read_twice_is_no_further_evidence(copies):
    """A source of 5 samples whose probe reads each several times, beside one of fresh samples."""
    generator = np.random.default_rng(0)
    five, fresh = generator.normal(size=5), generator.normal(size=5 * copies)
    found = SampleProducts(
        values=np.concatenate([np.tile(five, copies), fresh]),
        source=np.repeat([0, 1], 5 * copies),
        samples=np.ones(10 * copies),
    )
    products = Products.mean_by_source(
        found, 2, DataParallelGroup(), distinct=np.array([5, 5 * copies])
    )
    expected = [each.std(ddof=1) / np.sqrt(len(each)) for each in (five, fresh)]
    np.testing.assert_allclose(products.standard_error, expected)
    np.testing.assert_allclose(products.values, [five.mean(), fresh.mean()])


def test_one_sample_alone_has_no_standard_error_however_often_it_is_read():
    found = SampleProducts(values=np.ones(3), source=np.zeros(3, int), samples=np.ones(3))
    products = Products.mean_by_source(found, 1, DataParallelGroup(), distinct=np.array([1]))
    assert np.isnan(products.standard_error[0])


def test_a_single_sample_is_as_sure_as_the_samples_of_the_others_are_alike():
    generator = np.random.default_rng(0)
    two, three = generator.normal(1.0, 2.0, 2), generator.normal(5.0, 2.0, 3)
    found = SampleProducts(
        values=np.concatenate([two, three, [7.0]]),
        source=np.array([0, 0, 1, 1, 1, 2]),
        samples=np.ones(6),
    )
    products = Products.mean_by_source(found, 4, DataParallelGroup())
    deviation = np.sqrt((two.var(ddof=1) + 2 * three.var(ddof=1)) / 3)
    expected = [two.std(ddof=1) / 2**0.5, three.std(ddof=1) / 3**0.5, deviation, np.nan]
    np.testing.assert_allclose(products.pooled_error, expected)
    np.testing.assert_allclose(products.measured[2:], [7.0, np.nan])
    alone = Products.mean_by_source(
        SampleProducts(values=np.ones(2), source=np.arange(2), samples=np.ones(2)),
        2,
        DataParallelGroup(),
    )
    assert np.isnan(alone.pooled_error).all()
