"""What is equal on all ranks of a search, and what happens where it is not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import RankDivergenceError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.searches import SAMPLING, load, run_search


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage"),
    [slow(2, 1, 0), slow(2, 1, 1), slow(2, 1, 2), (2, 1, 3), slow(4, 2, 2)],
)
def test_logits_are_bitwise_equal_on_all_ranks(
    search_values: dict, ranks: int, tensor_parallel: int, stage: int
) -> None:
    changes = {
        "engine.zero_stage": stage,
        "engine.tensor_model_parallel_size": tensor_parallel,
    }
    first, *others = run_ranks(ranks, run_search, load(search_values, **changes))
    for other in others:
        assert first["logits"].tobytes() == other["logits"].tobytes()
    assert np.ptp(first["logits"]) > 0.05
    assert len(first["history"]) == 1 + 6 // 2


def diverge(config: SearchConfig) -> str:
    search = Search(config)
    if search.world.rank == 1:
        search.mixture._y[2] += 1e-6
    with pytest.raises(RankDivergenceError) as caught:
        search.run()
    return str(caught.value)


def test_logits_that_differ_between_ranks_stop_the_run(search_values: dict) -> None:
    for message in run_ranks(2, diverge, load(search_values)):
        assert re.search(r"the logits of \w+ differ over 2 ranks", message)


def rounds_as_another_processor(config: SearchConfig) -> bytes:
    """Logits and weights, where NumPy on rank 1 rounds otherwise."""
    search = Search(config)
    mixture, exact = search.mixture, search.mixture.update

    def update(*arguments: np.ndarray) -> np.ndarray:
        slope = exact(*arguments)
        mixture._y = np.nextafter(mixture._y, np.inf)
        mixture.history[-1] = np.nextafter(mixture.history[-1], 0)
        return slope

    if search.world.rank == 1:
        mixture.update = update  # type: ignore[method-assign]
    search.run()
    return mixture.logits.tobytes() + np.stack(mixture.history).tobytes()


def test_ranks_on_several_kinds_of_processors_hold_one_mixture(search_values: dict) -> None:
    assert len(set(run_ranks(2, rounds_as_another_processor, load(search_values)))) == 1


def weighs_targets_as_another_processor(config: SearchConfig) -> bytes:
    """Logits, where rank 1 finds other weights of the targets: exp and log of other last bits moved
    them by up to 2e-7 in 300 random problems."""
    search = Search(config)
    exact = search.targets.choose
    if search.world.rank == 1:
        search.targets.choose = lambda *a: np.add(exact(*a), [1e-7, -1e-7])  # type: ignore[method-assign]
    search.run()
    return search.mixture.logits.tobytes()


def test_processors_of_several_kinds_weigh_the_targets_alike(
    search_values: dict, corpora: Path
) -> None:
    search_values["targets"].append({"name": "other", "path": str(corpora / "target_backward")})
    changes = {**SAMPLING, "objective.target_aggregation": "least_gain"}
    config = load(search_values, **changes)
    assert len(set(run_ranks(2, weighs_targets_as_another_processor, config))) == 1


def last_bits_differ(config: SearchConfig) -> bytes:
    """The logits, where each tensor-parallel rank's communicator rounds its sums in its own way."""
    search = Search(config)
    exact = search.batches.group.sum
    factor = 1 + 1e-14 * search.tensor.rank
    search.batches.group.sum = lambda values: exact(values) * factor  # type: ignore[method-assign]
    search.run()
    return search.mixture.logits.tobytes()


def test_sums_over_several_communicators_do_not_tell_tensor_parallel_ranks_apart(
    search_values: dict,
) -> None:
    config = load(search_values, **{"engine.tensor_model_parallel_size": 2})
    assert len(set(run_ranks(2, last_bits_differ, config))) == 1


def group_sum() -> tuple[np.ndarray, int]:
    group = DataParallelGroup()
    return group.sum(np.array([0.1, 0.2]) * (group.rank + 1)), group.size


def test_sums_are_equal_on_all_ranks() -> None:
    results = run_ranks(4, group_sum)
    assert {size for _, size in results} == {4}
    assert len({values.tobytes() for values, _ in results}) == 1
    np.testing.assert_allclose(results[0][0], [1.0, 2.0])
