"""Every kind of setting that `engine.deepspeed_config` passes on, in searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.distributed.searches import load, run_search, slow

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
