"""The configuration is strict: what cannot work is refused with what, where, value and fix."""

import copy
import dataclasses
import inspect
import math
import re
import typing
from pathlib import Path

import pytest
import yaml

from megatron_fastmix import config
from megatron_fastmix.config import dump_config, load_config
from megatron_fastmix.errors import ConfigError

LAMBDA = ("--objective.entropy_weight=1e-6",)
"""Without it, weights of a prior are refused as such."""


def load(values: dict, tmp_path: Path, *overrides: str):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_config(path, overrides)


def test_the_shipped_configuration_loads_and_round_trips(tmp_path):
    config = load_config(Path(__file__).parents[2] / "configs/quickstart.yaml")
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert len(config.sources) == 6


def test_overrides_take_dotted_keys_megatrons_flags_and_ours(search_values, tmp_path):
    config = load(
        search_values,
        tmp_path,
        "--training.lr=1e-3",
        "--train-iters=100",
        "--fastmix-inner-steps=7",
        "--adam-eps=1e-9",
        "--fastmix-lr=0.25",
        "--engine.zero_stage=3",
        "--run_dir=elsewhere",
    )
    assert config.training.lr == 1e-3
    assert config.training.train_iters == 100
    assert config.mixture.inner_steps == 7
    assert config.training.adam_eps == 1e-9, "Megatron's flag of that name"
    assert config.mixture.lr == 0.25
    assert config.engine.zero_stage == 3
    assert config.run_dir == "elsewhere"


def test_a_tilde_is_the_home_folder_in_what_is_read(search_values, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    search_values["sources"][0]["path"] = "~/a"
    search_values["targets"][0]["path"] = ["~/t_*", "./~/t"]
    search_values["tokenizer"]["tokenizer_model"] = "~/model"
    config = load(search_values, tmp_path, "--proxy.checkpoint=~/run", "--deepspeed_config=~/ds")
    assert config.proxy.checkpoint == "/home/me/run"
    assert config.engine.deepspeed_config == "/home/me/ds"
    assert config.sources[0].path == "/home/me/a"
    assert config.targets[0].path == ("/home/me/t_*", "./~/t")
    assert config.tokenizer.tokenizer_model == "/home/me/model"
    Path("~").mkdir()  # a folder of this name is meant itself
    assert load(search_values, tmp_path).sources[0].path == "~/a"


def test_an_exponent_without_a_point_is_a_number(search_values, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(search_values).replace("lr: 0.003", "lr: 3e-3"))
    assert load_config(path).training.lr == 3e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--training.train_iter=5", r"train_iter: unknown key; did you mean training.train_iters"),
        ("--engine.zero_stage=4", r"engine.zero_stage: found 4; choose one of 0, 1, 2, 3"),
        ("--train-iters=many", r"training.train_iters: expected int, found 'many'"),
        ("--train-iters", r"overrides have the form --key=value"),
        ("--micro-batch-size=0", r"training.micro_batch_size: found 0; use 1 or more"),
        ("--mixture.inner_steps=7", r"must not exceed train_iters 6"),
        ("--mixture.initial_weights=[1, 2]", r"one positive weight for each of the 3 sources"),
        ("--min-lr=1", r"training.min_lr: found 1.0; choose it between 0 and lr"),
        ("--num-attention-heads=5", r"proxy.num_attention_heads: found 5"),
        ("--training=3", r"unknown key; valid keys: .*training\.lr"),
        ("--train-iter=5", r"train-iter: unknown key; did you mean training\.train_iters\?$"),
        ("--min-l=5", r"min-l: unknown key; did you mean training\.min_lr or mixture\.min_lr\?$"),
        ("--objective.prior_weights=[1, 2, 3]", r"prior_weights: .*entropy_weight, which is 0"),
        ("--objective.entropy_weight=-1e-6", r"objective.entropy_weight: found -1e-06; use 0"),
        ("--objective.entropy_weight=.nan", r"objective.entropy_weight: found nan; use a finite"),
        ("--mixture.lr=1e400", r"mixture.lr: found inf; use a finite number"),
        ("--mixture.initial_weights=[1, .inf, 1]", r"initial_weights\[1\]: found inf"),
        ("--lr-warmup-iters=7", r"lr_warmup_iters: found 7; .* train_iters 6"),
        ("--mixture.lr_warmup_steps=4", r"lr_warmup_steps: found 4; .* the 3 outer steps"),
        ("--mixture.adam_beta2=1", r"mixture.adam_beta2: found 1.0; use a factor from 0 to below"),
        ("--distributed-timeout-minutes=-5", r"distributed_timeout_minutes: found -5; use 1 to"),
        ("--distributed-timeout-minutes=9000000000000", r"found 9000000000000; use 1 to"),
        ("--num-attention-heads=0", r"proxy.num_attention_heads: found 0; use 1 or more"),
        ("--seed=4294967296", r"seed: found 4294967296"),
    ],
)
def test_a_wrong_override_is_refused(search_values, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(search_values, tmp_path, override)


def numbers(cls: type, prefix: str = "") -> list[tuple[str, bool]]:
    """Every numeric key of a configuration, and whether it is a float."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        kinds = typing.get_args(hint) or (hint,)
        if dataclasses.is_dataclass(hint):
            found += numbers(hint, f"{prefix}{name}.")
        elif float in kinds or int in kinds:
            found.append((prefix + name, float in kinds))
    return found


NUMBERS = numbers(config.SearchConfig)


@pytest.mark.parametrize("key", [key for key, _ in NUMBERS])
def test_no_number_may_be_negative(search_values, tmp_path, key):
    """Nothing that is counted, waited for or weighed by is below 0."""
    least = "[-5, 1, 1]" if "weights" in key else "-5"
    with pytest.raises(ConfigError, match=re.escape(key.split(".")[-1])):
        load(search_values, tmp_path, *LAMBDA, f"--{key}={least}")


@pytest.mark.parametrize("key", [key for key, is_float in NUMBERS if is_float])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_no_number_may_be_nan_or_infinite(search_values, tmp_path, key, value):
    text = f"[{value}, 1, 1]" if "weights" in key else value
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}.*use a finite number"):
        load(search_values, tmp_path, *LAMBDA, f"--{key}={text}")


@pytest.mark.parametrize("kind", ["sources", "targets"])
@pytest.mark.parametrize("value", [-5.0, math.nan, math.inf])
def test_nor_may_one_of_a_source_or_target(search_values, tmp_path, kind, value):
    cls = config.SourceConfig if kind == "sources" else config.TargetConfig
    for key, _ in numbers(cls):
        values = copy.deepcopy(search_values)
        values[kind][0][key] = value
        with pytest.raises(ConfigError):
            load(values, tmp_path)


def test_norms_that_all_heads_share_are_not_split_over_ranks(search_values, tmp_path):
    split = "--engine.tensor_model_parallel_size=2"
    assert load(search_values, tmp_path, split).engine.tensor_model_parallel_size == 2
    with pytest.raises(ConfigError, match=r"found 2; use 1 with proxy.qk_layernorm"):
        load(search_values, tmp_path, split, "--proxy.qk_layernorm=true")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(sorces=[]), r"sorces: unknown key; did you mean sources\?"),
        (lambda v: v["data"].update(seq_len=3), r"data.seq_len: unknown key"),
        (lambda v: v.pop("targets"), r"targets: missing"),
        (lambda v: v.update(sources=v["sources"][:1]), r"at least 2 sources"),
        (lambda v: v.update(targets=[]), r"at least one held-out target"),
        (lambda v: v["sources"].append(v["sources"][0]), r"sources: found \['forward'\]"),
        (lambda v: v.update(targets=v["sources"][:1]), r"a target must not be a source"),
        (
            lambda v: v["targets"][0].update(weight=-1.0),
            r"target target: weight: found -1.0",
        ),
        (
            lambda v: v.update(
                objective={"target_aggregation": "least_gain"},
                targets=[v["targets"][0], v["targets"][0] | {"name": "other", "weight": 2.0}],
            ),
            r"targets: weight: found \[1.0, 2.0\]; .*least_gain chooses the weights",
        ),
        (lambda v: v.update(sources="python"), r"sources: expected a list, found 'python'"),
    ],
)
def test_a_wrong_configuration_is_refused(search_values, tmp_path, change, message):
    change(search_values)
    with pytest.raises(ConfigError, match=message):
        load(search_values, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("", "found nothing"), ("- 1", "found list")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot read the configuration"):
        load_config(tmp_path / "nothing.yaml")


def test_batch_sizes_that_do_not_divide_are_refused(search_values, tmp_path):
    config = load(search_values, tmp_path)
    assert config.accumulation_steps(2) == 2
    message = r"found 12; it must be a multiple .* = 24: raise it, or use 4 ranks"
    with pytest.raises(ConfigError, match=message):
        config.accumulation_steps(8)


def test_every_field_is_documented():
    """A field that nobody explains is a field that nobody can set."""
    for name, cls in vars(config).items():
        if dataclasses.is_dataclass(cls):
            source = inspect.getsource(inspect.getmodule(cls))
            body = source[source.index(f"class {name}") :].split("\n@dataclass")[0]
            for field in dataclasses.fields(cls):
                assert f"    {field.name}:" in body
