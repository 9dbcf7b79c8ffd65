"""`engine.deepspeed_config`: what is passed on, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.deepspeed_engine.settings import merged, zero_config
from megatron_fastmix.errors import ConfigError

OURS: dict[str, Any] = {
    "train_batch_size": 12,
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": True},
}


def merge(tmp_path: Path, settings: dict[str, Any], ours: dict[str, Any] = OURS) -> dict[str, Any]:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(settings))
    return merged(ours, file)


def test_the_users_keys_join_ours(tmp_path: Path) -> None:
    found = merge(
        tmp_path,
        {
            "train_batch_size": "auto",
            "zero_optimization": {
                "stage": 2,
                "offload_optimizer": {"device": "cpu", "pin_memory": True, "ratio": 1.0},
                "reduce_bucket_size": 1000,
                "zero_hpz_partition_size": 1,
            },
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": False, "loss_scale_window": 1000},
            "communication_data_type": "fp32",
            "comms_logger": {"enabled": False, "verbose": True},
        },
    )
    assert found == {
        "train_batch_size": 12,
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "reduce_bucket_size": 1000,
        },
        "bf16": {"enabled": True},
        "communication_data_type": "fp32",
        "comms_logger": {"enabled": False},
        "zero_force_ds_cpu_optimizer": False,
    }
    assert OURS["zero_optimization"] == {"stage": 2}


def test_no_timer_of_deepspeed_has_the_host_wait(search_values: dict) -> None:
    from deepspeed.utils.config import get_timers_config

    settings = zero_config(strict_yaml.from_dict(SearchConfig, search_values), 1)
    assert not get_timers_config(settings).enabled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 16}, "train_batch_size: found 16, and the search has 12 from train"),
        ({"zero_optimization": {"stage": 3}}, r"stage: found 3, and .* from engine\.zero_stage"),
        ({"optimizer": {"type": "Adam"}}, r"optimizer\.type: found 'Adam'; the search builds"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled: found True; .*no loss scaling reaches"),
        (
            {"activation_checkpointing": {"partition_activations": True}},
            r"use proxy\.recompute_granularity full",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            r"offload_param\.device: found 'cpu'; the outer step works on",
        ),
        (
            {"zero_optimization": {"zero_hpz_partition_size": 8}},
            "zero_hpz_partition_size: found 8; backward passes read",
        ),
        (
            {"zero_optimization": {"round_robin_gradients": True}},
            "round_robin_gradients: found True; a search that was stopped",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "found 'nvme'; use cpu",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.3}}},
            "ratio: found 0.3",
        ),
        ({"zero_optimisation": {}}, r"unknown key zero_optimisation \(did you mean zero_optim"),
    ],
)
def test_what_a_search_cannot_stand_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        merge(tmp_path, settings)


@pytest.mark.parametrize(
    ("stage", "bf16", "dtype", "message"),
    [
        (0, True, "fp32", "'fp32' with engine.zero_stage 0; without ZeRO"),
        (0, False, "bf16", "without ZeRO"),
        (1, True, "torch.float32", "at stage 1 DeepSpeed has an optimizer"),
        (0, True, "bfloat16", None),
        (1, False, "fp32", None),
        (2, True, "fp32", None),
    ],
)
def test_gradients_accumulate_in_a_type_that_checkpoints_read(
    tmp_path: Path, stage: int, bf16: bool, dtype: str, message: str | None
) -> None:
    ours = OURS | {"zero_optimization": {"stage": stage}, "bf16": {"enabled": bf16}}
    settings = {"data_types": {"grad_accum_dtype": dtype}}
    if message is None:
        assert merge(tmp_path, settings, ours)["data_types"] == settings["data_types"]
    else:
        with pytest.raises(ConfigError, match=message):
            merge(tmp_path, settings, ours)


def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    for text in ("[]", "{"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"ds\.json"):
            merged(OURS, file)
    with pytest.raises(ConfigError, match="absent"):
        merged(OURS, tmp_path / "absent.json")
