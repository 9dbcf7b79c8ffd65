"""Damaged configurations, hostfiles, blends and models end in an error of this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_fastmix.blend.weight_schedule import read_schedule
from megatron_fastmix.config import (
    ProxyConfig,
    SearchConfig,
    TokenizerConfig,
    load_config,
    strict_yaml,
)
from megatron_fastmix.corpus.preprocess_config import PreprocessConfig
from megatron_fastmix.deepspeed_engine.settings import zero_config
from megatron_fastmix.export.blend_weights import read_blend_weights
from megatron_fastmix.export.import_blend import read_blend, read_named_blend
from megatron_fastmix.lab.comparison.config import load_compare_config
from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.proxy.model_files import check_model_files
from megatron_fastmix.proxy.starting_point import (
    check_earlier_search,
    check_megatron_checkpoint,
    check_model_folder,
)
from megatron_fastmix.start.claim import check_folder, claim
from megatron_fastmix.start.hostfile import read_hostfile
from tests.unit.damaged_files import Case, try_damage

pytestmark = pytest.mark.slow

SEARCH = {
    "sources": [{"name": name, "path": f"/data/{name}"} for name in ("a", "b")],
    "targets": [{"name": "t", "path": "/data/t"}],
    "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
    "training": {
        "train_iters": 6,
        "micro_batch_size": 3,
        "global_batch_size": 12,
        "lr": 1e-3,
        "lr_warmup_iters": 2,
    },
    "mixture": {"inner_steps": 2},
    "output": {"save_interval": 3},
}
PREPROCESS = {
    "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
    "datasets": [
        {"prefix": "out/a", "input": ["a.jsonl"], "split": "9,1,0", "licence": "MIT"},
        {"prefix": "out/t", "input": ["t.jsonl"], "held_out": True, "skip_bad_lines": 3},
    ],
    "workers": 2,
}
BYTES = TokenizerConfig(tokenizer_type="ByteLevelTokenizer")


@pytest.mark.parametrize(
    ("values", "load"),
    [
        ({"run_dir": "run", **SEARCH}, load_config),
        ({"tests": [{"name": "t", "path": "x"}]}, lambda p: load_compare_config(p, [], [])),
        (
            {"search": SEARCH, "compare": {"tests": [{"name": "t", "path": "x"}]}},
            lambda p: load_scenario(p).choose(None, "here"),
        ),
        (
            {
                "schedule": [
                    {"at_sample": 0, "weights": {"a": 0.7, "b": 0.3}},
                    {"at_sample": 100, "weights": {"a": 0.4, "b": 0.6}},
                ]
            },
            read_schedule,
        ),
        (
            PREPROCESS,
            lambda p: strict_yaml.from_dict(PreprocessConfig, strict_yaml.load_yaml(p)).in_order,
        ),
    ],
    ids=["search", "comparison", "scenario", "schedule", "preprocess"],
)
def test_yaml(tmp_path: Path, values: dict[str, Any], load: Callable[[Path], Any]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    try_damage(Case(path, load))


def test_the_configuration_in_a_run_folder(tmp_path: Path) -> None:
    values = {"run_dir": str(tmp_path), **SEARCH}
    config: SearchConfig = strict_yaml.from_dict(SearchConfig, values)
    folder = claim(config)
    try_damage(Case(folder.config, lambda path: check_folder(config)))
    try_damage(
        Case(folder.config, lambda path: check_earlier_search(config.proxy, "0" * 64, tmp_path))
    )


def test_deepspeed_configurations(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        '{"train_batch_size": "auto", "zero_optimization": {"stage": 2, "overlap_comm": true, '
        '"offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": false}, "comms_logger": '
        '{"enabled": true}, "fp16": {"enabled": false}}'
    )
    values = {
        "run_dir": "run",
        **SEARCH,
        "engine": {"deepspeed_config": str(path), "zero_stage": 2},
    }
    config: SearchConfig = strict_yaml.from_dict(SearchConfig, values)
    try_damage(Case(path, lambda path: zero_config(config, 2)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hostfile", "node-1 slots=8\n# more\nme@node-2 slots=4 max_slots=8\r\n"),
        ("blend.txt", "0.3 /d/a 0.7 /d/b\n"),
        ("blend.json", '{"train": [0.3, "/d/a", "0.7", "/d/b"], "valid": null}'),
        ("nemo.yaml", "model: {data: {data_prefix: [0.3, /d/a, 0.7, /d/b]}}"),
        ("bridge.yaml", "dataset: {blend: [[/d/a, /d/b], [0.3, 0.7]]}"),
        (
            "nemotron.json",
            '{"datasets": [{"name": "a", "path": "/d/a", "weight": 0.3},'
            ' {"name": "b", "path": "/d/b", "weight": 0.7}]}',
        ),
        ("run.sh", "python pretrain_gpt.py --data-path 0.3 /d/a 0.7 /d/b --lr 1"),
        ("nemo.txt", 'paths=["30", "/d/a", "70", "/d/b"]'),
    ],
)
def test_hosts_and_blends(tmp_path: Path, name: str, text: str, make_mixture: Any) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    mixture = make_mixture({"a": 0.7, "b": 0.3}, folder="/d")

    def use(path: Path) -> None:
        if read_named_blend(path) is None:
            read_blend(path)
        read_blend_weights(path, mixture)

    try_damage(Case(path, read_hostfile if name == "hostfile" else use))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_models(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=258, num_attention_heads=2, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    proxy = ProxyConfig(kind="huggingface", path=str(tmp_path))

    def use(path: Path) -> None:
        check_model_folder(proxy, 258, BYTES, 64)
        check_model_files(path.parent)

    try_damage(Case(tmp_path / name, use))


@pytest.mark.parametrize("name", ["latest_checkpointed_iteration.txt", "metadata.json"])
def test_checkpoints_of_megatron(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "iter_0000010"
    folder.mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10\n")
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "version": 1}')
    path = next(path for path in (tmp_path / name, folder / name) if path.exists())
    try_damage(Case(path, lambda path: check_megatron_checkpoint(tmp_path)))
