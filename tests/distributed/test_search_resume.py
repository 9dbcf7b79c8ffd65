"""A search that is stopped, killed or broken goes on from its last good checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.searches import (
    SAMPLING,
    claim_once,
    load,
    run_search,
    without_times,
)

OPTIONS = {
    "objective.target_aggregation": "worst_case",
    "objective.train_loss_weight": 0.2,
    "objective.entropy_weight": 1e-6,
    "hypergradient.preconditioner": "adam",
    "mixture.optimizer": "mirror_descent",
    "mixture.lr": 10.0,
    "mixture.lr_decay_style": "cosine",
}

LEAST_GAIN = {
    "objective.target_aggregation": "least_gain",
    "objective.train_loss_weight": 0.2,
    "mixture.initial_weights": [0.5, 0.3, 0.2],
}


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage", "options"),
    [
        (2, 1, 0, {}),
        slow(2, 1, 2, {}),
        slow(2, 1, 3, {}),
        slow(4, 2, 3, {}),
        slow(2, 1, 2, OPTIONS),
        slow(2, 1, 3, OPTIONS),
        slow(2, 1, 3, LEAST_GAIN),
        slow(2, 1, 1, SAMPLING),
        slow(2, 1, 1, {"engine.dtype": "bf16"}),
    ],
)
def test_a_stopped_search_resumes_bitwise(
    search_values: dict,
    corpora: Path,
    tmp_path: Path,
    ranks: int,
    tensor_parallel: int,
    stage: int,
    options: dict[str, Any],
) -> None:
    search_values["targets"].append({"name": "down", "path": str(corpora / "target_backward")})
    changes: dict[str, Any] = {
        "engine.zero_stage": stage,
        "engine.tensor_model_parallel_size": tensor_parallel,
        **options,
    }
    straight = load(search_values, run_dir=tmp_path / "straight", **changes)
    parts = load(search_values, run_dir=tmp_path / "parts", **changes)
    expected = run_ranks(ranks, run_search, straight)[0]
    stopped = run_ranks(ranks, run_search, parts, 4)[0]
    assert not stopped["complete"]
    assert not json.loads((tmp_path / "parts/mixture.json").read_text())["complete"]
    resumed = run_ranks(ranks, run_search, parts)[0]
    assert resumed["complete"]
    for key in ("logits", "history", "parameters"):
        assert resumed[key].tobytes() == expected[key].tobytes()
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(
        tmp_path / "straight/metrics.jsonl"
    )


@pytest.mark.slow
def test_lines_and_steps_after_the_last_checkpoint_are_done_again(
    search_values: dict, tmp_path: Path
) -> None:
    """As after `kill -9`: steps 4 and 5 leave metrics, and half a checkpoint without its mark."""
    straight = load(search_values, run_dir=tmp_path / "straight")
    parts = load(search_values, run_dir=tmp_path / "parts")
    expected = run_ranks(2, run_search, straight)[0]
    run_ranks(2, run_search, parts, 5)
    (tmp_path / "parts/checkpoints/step-00000005/search.json").unlink()
    with open(tmp_path / "parts/metrics.jsonl", "a") as file:
        file.write('{"kind": "inner", "st')
    resumed = run_ranks(2, run_search, parts)[0]
    assert resumed["parameters"].tobytes() == expected["parameters"].tobytes()
    assert resumed["logits"].tobytes() == expected["logits"].tobytes()
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(
        tmp_path / "straight/metrics.jsonl"
    )


def blow_up(config: SearchConfig) -> str:
    claim_once(config)
    search = Search(config)
    original = search.batches.training

    def training(step: int, micro_step: int) -> Any:
        if step == 4:  # a parameter is lost, as by a broken device
            next(search.engine.module.parameters()).data.fill_(float("nan"))
        return original(step, micro_step)

    search.batches.training = training  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError) as caught:
        search.run()
    return str(caught.value)


def test_nan_stops_the_run_and_the_last_good_checkpoint_stays(search_values: dict) -> None:
    config = load(search_values)
    for message in run_ranks(2, blow_up, config):
        assert "step 5: the loss of source forward is nan" in message
    assert (Path(config.run_dir) / "checkpoints/step-00000003/search.json").exists()
    assert run_ranks(2, run_search, config)[0]["complete"]
