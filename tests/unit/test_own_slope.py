"""The check of an estimator against the slope of the target along its own gradient."""

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.hypergradient import ESTIMATORS, Probe, target_gradient
from megatron_fastmix.hypergradient.own_slope import TOLERANCE, own_slope_error
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters


class Network(torch.nn.Module):
    """Two layers; `behind` times, the first one's weight is used without a call of the module."""

    def __init__(self, behind: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.output = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(x) + self.behind * torch.nn.functional.linear(x, self.hidden.weight)
        return self.output(torch.tanh(hidden)).squeeze(-1)


def slope_error(name: str, behind: float, scale: float = 1.0) -> float:
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        tokens=torch.randn(6, 4, generator=generator),
        labels=scale * torch.randn(6, generator=generator),
        loss_mask=torch.ones(6),
        index=np.array([0, 0, 0, 1, 1, 1]),
        role=np.array([Role.TARGET] * 5 + [Role.PADDING]),
    )
    weights = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.3, 0.0])
    model = Network(behind)
    probe = Probe(
        batches=(),
        losses=lambda batch: (model(batch.tokens) - batch.labels).square().double(),
        model=model,
        parameters=Parameters(list(model.parameters()), DataParallelGroup()),
        num_sources=2,
        relative_step=1e-4,
    )
    objective = [(batch, weights)]
    v = target_gradient(probe.losses, probe.parameters, objective)
    return own_slope_error(ESTIMATORS[name], probe, objective, v, DataParallelGroup())


@pytest.mark.parametrize(("name", "tolerance"), [("one_pass", 1e-5), ("finite_difference", 5e-3)])
def test_an_estimator_that_sees_all_has_the_slope_of_v(name, tolerance):
    assert slope_error(name, behind=0.0) < tolerance


def test_a_weight_that_is_used_behind_the_estimators_back_is_noticed():
    assert slope_error("one_pass", behind=1.0) > 2 * TOLERANCE
    assert slope_error("finite_difference", behind=1.0) < TOLERANCE  # it need not see modules


def test_a_gradient_that_is_no_number_tells_nothing():
    assert np.isnan(slope_error("one_pass", behind=0.0, scale=float("inf")))
