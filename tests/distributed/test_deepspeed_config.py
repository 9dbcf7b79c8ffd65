"""Every kind of setting that `engine.deepspeed_config` passes on, in searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.deepspeed_engine.settings import REFUSED
from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.cases import slow
from tests.distributed.searches import load, products_of, run_search

pytestmark = pytest.mark.slow

SETTINGS: dict[str, dict[str, Any]] = {
    "offload": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
    "buckets": {
        "zero_optimization": {
            "reduce_bucket_size": 500,
            "allgather_bucket_size": 500,
            "overlap_comm": False,
            "contiguous_gradients": False,
        }
    },
    "gathering": {
        "zero_optimization": {
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 10_000,
            "stage3_max_reuse_distance": 0,
        }
    },
    "overlap": {
        "zero_optimization": {
            "overlap_comm": True,
            "reduce_scatter": True,
            "allgather_bucket_size": 1000,
            "allgather_partitions": True,
            "sub_group_size": 1000,
        }
    },
    "all-reduce": {"zero_optimization": {"reduce_scatter": False, "allgather_partitions": False}},
    "communication": {
        "communication_data_type": "fp32",
        "comms_logger": {"enabled": False},
    },
}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("offload", 2),
        ("offload", 3),
        slow("overlap", 2),
        slow("overlap", 3),
        slow("all-reduce", 2),
        slow("buckets", 2),
        slow("buckets", 3),
        slow("gathering", 3),
        slow("communication", 2),
        slow("communication", 3),
    ],
)
def test_a_setting_changes_no_search(
    search_values: dict, tmp_path: Path, name: str, stage: int
) -> None:
    plain = load(search_values, run_dir=tmp_path / "plain", **{"engine.zero_stage": stage})
    expected = run_ranks(2, run_search, plain)[0]
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(SETTINGS[name]))
    changes = {"engine.zero_stage": stage, "engine.deepspeed_config": file}
    config = load(search_values, **changes)
    # Stopped and resumed, so that the optimizer's state is read and set where the setting has it.
    assert not run_ranks(2, run_search, config, 4)[0]["complete"]
    found = run_ranks(2, run_search, config)[0]
    for what in ("parameters", "history", "losses"):
        np.testing.assert_allclose(found[what], expected[what], rtol=1e-4, atol=1e-5)


def test_why_hpz_is_refused(
    search_values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once this fails, DeepSpeed's copy in each node follows the shards, and hpZ may be let in."""
    changes = {"engine.zero_stage": 3, "hypergradient.estimator": "finite_difference"}
    plain = load(search_values, run_dir=tmp_path / "plain", **changes)
    run_ranks(2, run_search, plain)
    monkeypatch.delitem(REFUSED, "zero_optimization.zero_hpz_partition_size")
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"zero_hpz_partition_size": 2}}))
    config = load(search_values, **changes, **{"engine.deepspeed_config": file})
    # Stopped and resumed: the copy is that of the start.
    run_ranks(2, run_search, config, 4)
    run_ranks(2, run_search, config)
    expected, found = products_of(plain.run_dir), products_of(config.run_dir)
    assert np.abs(found - expected).max() > 0.1 * np.abs(expected).max()


def test_why_fp16_is_refused() -> None:
    small = torch.tensor(1e-8, dtype=torch.float32)
    assert small.bfloat16() > 0
    assert small.half() == 0
