"""The shipped configurations, and what `init` and `config` write and say."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import tokenizers
import yaml

from megatron_fastmix.cli import main as cli
from megatron_fastmix.config import SearchConfig, load_config
from megatron_fastmix.config.megatron_flags import MEANINGS
from megatron_fastmix.config.reference import find_keys, keys
from megatron_fastmix.config.strict_yaml import apply_overrides
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.search.inputs import assumed_inputs
from megatron_fastmix.start.first_config import HELD_OUT, SHIPPED, shipped_configurations
from megatron_fastmix.start.plan import estimated_time, make_plan, warnings
from tests.conftest import SOURCES, write_dataset

ASSUMED_TOKENS = 10_000_000_000
VOCABULARY = 50_304
QWEN2_1_5B = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
MODELS = {
    "sft_qwen2_1_5b": QWEN2_1_5B,
    "sft_qwen2_1_5b_lora": QWEN2_1_5B,
    "midtrain_from_huggingface": {
        **QWEN2_1_5B,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "sft_moe": {
        "model_type": "olmoe",
        "vocab_size": VOCABULARY,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
}
"""Sizes of the models that the configurations name, from their authors' config.json."""


def configuration(name: str, folder: Path) -> SearchConfig:
    """A shipped configuration; a model that it names has its sizes in `folder`."""
    config = load_config(SHIPPED / f"{name}.yaml")
    if config.proxy.path is not None:
        (folder / "config.json").write_text(json.dumps(MODELS[name]))
        proxy = dataclasses.replace(config.proxy, path=str(folder))
        config = dataclasses.replace(config, proxy=proxy)
    return config


def head_lines(name: str, folder: Path) -> list[str]:
    """What stands at the head of a configuration."""
    config = configuration(name, folder)
    inputs = assumed_inputs(config, ASSUMED_TOKENS, VOCABULARY)
    lines = []
    for gpus in (1, 8, 64):
        if config.training.global_batch_size % (config.training.micro_batch_size * gpus):
            continue
        plan = make_plan(config, inputs, ranks=gpus)
        gib = plan.most_memory(config.engine.zero_stage) / 2**30
        fits = "" if gib <= 80 else " (does not fit)"
        name_of = f"{gpus:2} GPU{'s' if gpus > 1 else ' '}"
        lines.append(f"{name_of}  {estimated_time(plan.hours)}, {gib:.3g} GiB each{fits}")
    return lines


@pytest.mark.parametrize("name", sorted(shipped_configurations()))
def test_a_shipped_configuration_is_planned_and_says_so(name: str, tmp_path: Path) -> None:
    if name in MODELS:
        pytest.importorskip("transformers")
        pytest.importorskip("peft")
    text = shipped_configurations()[name]
    said = [
        line.removeprefix("#   ") for line in text.splitlines() if re.match(r"#\s+\d+ GPU", line)
    ]
    assert said == head_lines(name, tmp_path)
    config = configuration(name, tmp_path)
    plan = make_plan(config, assumed_inputs(config, ASSUMED_TOKENS, VOCABULARY), ranks=8)
    assert warnings(plan, config) == []
    assert plan.most_memory(config.engine.zero_stage) < 80 * 2**30


def test_they_are_the_ones_that_users_ask_for() -> None:
    assert sorted(shipped_configurations()) == [
        "midtrain_from_huggingface",
        "midtrain_from_megatron",
        "pretrain_15m",
        "pretrain_160m",
        "pretrain_1b_zero3",
        "sft_moe",
        "sft_qwen2_1_5b",
        "sft_qwen2_1_5b_lora",
    ]
    assert len(load_config(SHIPPED / "pretrain_160m.yaml").sources) == 17


def test_init_lists_and_copies_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(shipped_configurations())
    output = tmp_path / "my.yaml"
    assert cli.main(["init", "--template", "sft_moe", "--output", str(output)]) == 0
    assert output.read_text() == shipped_configurations()["sft_moe"]
    assert cli.main(["init", "--template", "sft_moe", "--output", str(output)]) == 2
    assert "exists" in capsys.readouterr().err
    assert cli.main(["init", "--template", "x", "--output", str(tmp_path / "y")]) == 2
    assert "choose one of" in capsys.readouterr().err


BYTES = ["--tokenizer-type", "ByteLevelTokenizer"]


@pytest.mark.parametrize("given", ["words", "file", "prefixes", "folder"])
def test_init_writes_one_for_the_data_that_there_are(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    prefixes = [str(corpora / name) for name in SOURCES]
    blend = ["0.5", prefixes[0], "0.25", prefixes[1], "0.25", prefixes[2]]
    (tmp_path / "blend.txt").write_text(" ".join(blend))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (*SOURCES, "target_valid"):
        write_dataset(folder / name, [list(range(60))] * 50, 256)
    words = {
        "words": ["--data-path", *blend],
        "file": ["--data-path", str(tmp_path / "blend.txt")],
        "prefixes": ["--data", *prefixes],
        "folder": ["--data", str(folder)],
    }[given]
    if given != "folder":
        words += ["--target", str(corpora / "target")]
    output = tmp_path / "search.yaml"
    assert cli.main(["init", *words, *BYTES, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    config = load_config(output)
    assert sorted(config.source_names) == sorted(SOURCES)
    assert [t.name for t in config.targets] == ["target_valid" if given == "folder" else "target"]
    weights = (0.5, 0.25, 0.25) if given in ("words", "file") else None
    assert config.mixture.initial_weights == weights
    assert config.outer_steps >= 100
    for chosen in ("proxy:", "tokens:", "outer steps:", "targets:"):
        assert f"  {chosen}" in out
        assert f"# {chosen}" in output.read_text()
    assert cli.main(["plan", "--config", str(output), "--gpus-per-node", "1"]) == 0


def test_init_names_what_is_missing(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefixes = [str(corpora / name) for name in SOURCES]
    output = ["--output", str(tmp_path / "search.yaml")]
    for words, message in (
        (["--data", *prefixes, *BYTES], "--target PREFIX"),
        (["--data", *prefixes, "--target", str(corpora / "target")], "--tokenizer-type"),
        (["--data", str(tmp_path / "nothing")], "there is no dataset"),
        (["--data", str(tmp_path)], "holds no dataset"),
        (["--data", prefixes[0], "--target", str(corpora / "target"), *BYTES], "found 1 source "),
    ):
        assert cli.main(["init", *words, *output]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "search.yaml").exists()


@pytest.fixture
def odd_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with datasets in it, blends of them and a model's folder."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "data/a",
        "data/b",
        "data/c_valid",
        "data/d_test",
        "parts/x/p",
        "parts/y/p",
        "en/c/p",
        "de/c/p",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_dataset(Path(name), [list(range(60))] * 50, 256)
    splits = {"train": ["3", "data/a", "1", "data/b"], "valid": ["1", "data/d_test"], "test": None}
    Path("split.json").write_text(json.dumps(splits))
    named = {"datasets": [{"name": "web", "path": "hf://owner/web", "weight": 1}]}
    Path("named.json").write_text(json.dumps(named))
    Path("empty").mkdir()
    Path("model").mkdir()


WHOLE = ["data/a", "data/b", "--target", "data/c_valid", *BYTES]


@pytest.mark.parametrize(
    ("words", "sources", "weights", "targets"),
    [
        (["--data-path", "0.25 data/a 0.75 data/b", *WHOLE[2:]], "a b", (0.25, 0.75), "c_valid"),
        (["--data-path", "split.json", *BYTES], "a b", (0.75, 0.25), "d_test"),
        (["--data-path", "split.json", *WHOLE[2:]], "a b", (0.75, 0.25), "c_valid"),
        # A target in the blend has no share of it, and what is left is a blend again.
        (["--data-path", *["1", "data/a", "3", "data/b", "4", "data/c_valid"], *BYTES], "a b",
         (0.25, 0.75), "c_valid"),
        (["--data-path", *WHOLE], "a b", (0.5, 0.5), "c_valid"),
        (["--data", "data", "--target", "data/c_valid", "data/d_test", *BYTES], "a b", None,
         "c_valid d_test"),
        (["--data", "data", *BYTES], "a b", None, "c_valid"),
        (["--data", "data/[ab]", "data/c_valid", *BYTES], "a b", None, "c_valid"),
        (["--data", "parts/x", "parts/y", *WHOLE[2:]], "x_p y_p", None, "c_valid"),
        (["--data", "en/c/p", "de/c/p", *WHOLE[2:]], "en_c_p de_c_p", None, "c_valid"),
        (["--data", *WHOLE[:4], "--tokenizer-type", "NullTokenizer", "--vocab-size", "256"], "a b",
         None, "c_valid"),
    ],
)  # fmt: skip
def test_init_understands(
    odd_data: None, words: list[str], sources: str, weights: tuple[float, ...] | None, targets: str
) -> None:
    assert cli.main(["init", *words, "--output", "search.yaml"]) == 0
    config = load_config("search.yaml")
    assert config.source_names == sources.split()
    assert config.mixture.initial_weights == weights
    assert [target.name for target in config.targets] == targets.split()
    assert cli.main(["plan", "--config", "search.yaml", "--gpus-per-node", "1"]) == 0


def test_init_leaves_tests_to_tests(odd_data: None, capsys: pytest.CaptureFixture[str]) -> None:
    blend = ["1", "data/a", "3", "data/b", "4", "data/c_valid", "8", "data/d_test"]
    for number, words in enumerate((["--data", "data"], ["--data-path", *blend])):
        assert cli.main(["init", *words, *BYTES, "--output", f"{number}.yaml"]) == 0
        assert "left out: data/d_test, kept for tests" in capsys.readouterr().out
        config = load_config(f"{number}.yaml")
        assert config.source_names == ["a", "b"]
        assert [target.name for target in config.targets] == ["c_valid"]
    assert config.mixture.initial_weights == (0.25, 0.75)
    # With nothing else held out the test is the target.
    words = ["--data", "data/a", "data/b", "data/d_test", *BYTES]
    assert cli.main(["init", *words, "--output", "test.yaml"]) == 0
    assert [target.name for target in load_config("test.yaml").targets] == ["d_test"]


def test_epochs_are_those_of_the_mixture_at_the_start(
    odd_data: None, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = ["0.9", "data/a", "0.1", "data/b", "--target", "data/c_valid", *BYTES]
    assert cli.main(["init", "--data-path", *blend]) == 0
    said = capsys.readouterr().out
    config = load_config("search.yaml")
    training = config.training
    read = training.train_iters * training.global_batch_size * config.data.seq_length
    tokens = 50 * 60
    assert f"start mixture, data/a, is read about {0.9 * read / tokens:,.2f} times" in said
    call = ["plan", "--config", "search.yaml", "--gpus-per-node", "1"]
    assert cli.main([*call, "--output.token_budget=1M"]) == 0
    out = capsys.readouterr().out
    found = re.search(r"epochs at the start mixture\n.*\na +([\d.]+)\nb +([\d.]+)\n", out)
    assert float(found[1]) == pytest.approx(9 * float(found[2]), rel=0.02)
    assert f"a: {0.9e6 / tokens:.3g} times" in out
    assert cli.main([*call, "--mixture.weighting=loss"]) == 0
    found = re.search(
        r"epochs at even draws\n.*\na +([\d.]+)\nb +([\d.]+)\n", capsys.readouterr().out
    )
    assert found[1] == found[2]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--tflops", "inf"], "--tflops: found inf"),
        (["--tflops", "nan"], "--tflops: found nan"),
        (["--tflops", "0"], "--tflops: found 0"),
        (["--memory-gib", "0"], "--memory-gib: found 0"),
        (["--memory-gib", "nan"], "--memory-gib: found nan"),
        (["--assume-tokens", "1B", "--assume-vocab-size", "0"], "--assume-vocab-size: found 0"),
        (["--token-budget", "30000"], "data.token_budget: found 30,000, fewer than"),
    ],
)
def test_a_plan_refuses(
    odd_data: None, capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    assert cli.main(["init", "--data", "data", *BYTES]) == 0
    call = ["plan", "--config", "search.yaml", "--gpus-per-node", "1"]
    assert cli.main([*call, *flags]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-path", "nowhere.txt", *BYTES], "found no file nowhere.txt"),
        (["--data-path", "named.json", *BYTES], "named.json is a DataBlend.* with --data, then"),
        (["--data-path", "1", "data/a", "1", "data/z", *BYTES], "no dataset data/z .*has the data"),
        (["--data-path", "1", "data/a", "1", "parts/x", *BYTES], "no dataset parts/x"),
        (["--data-path", "nan", "data/a", "1", "data/b", *BYTES], "weight of data/a is 'nan'"),
        (["--data", "data/a.bin", *WHOLE[1:]], "use data/a$"),
        (["--data", "data/a", "./data/a", *WHOLE[1:]], "given twice"),
        (["--data", "data/a", "data/b", "--target", "data/z", *BYTES], "--target: there is no"),
        (["--data", "data/a", "./data/b", "--target", "data/b", *BYTES], "found 1 source beside"),
        (["--data", "empty", *BYTES], "the folder empty holds no dataset"),
        (["--data", "parts", *BYTES], r"subfolders have some: write parts/\*\*/\*"),
        (["--data", *WHOLE[:4], "--tokenizer-type", "Bytes"], "found 'Bytes'; choose one of"),
        (["--data", *WHOLE[:4], "--tokenizer-model", "x"], "give --tokenizer-type, too"),
        (["--data", *WHOLE, "--huggingface", "nobody/model"], "nobody/model holds no config.json"),
        (["--data", *WHOLE, "--huggingface", "model"], "model holds no config.json"),
    ],
)
def test_init_refuses(
    odd_data: None, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["init", *words, "--output", "search.yaml"]) == 2
    assert re.search(message, capsys.readouterr().err.strip())
    assert not Path("search.yaml").exists()


def test_init_starts_from_the_model_in_a_folder(
    odd_data: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    Path("model/config.json").write_text(json.dumps(QWEN2_1_5B))
    words = ["init", "--data", *WHOLE[:4], "--huggingface", "model", "--output", "search.yaml"]
    assert cli.main(words) == 2
    assert "model/tokenizer.json: cannot read the tokenizer" in capsys.readouterr().err
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<|endoftext|>": 1}, []))
    tokenizer.save("model/tokenizer.json")
    Path("model/tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert cli.main(words) == 0
    config = load_config("search.yaml")
    assert (config.proxy.kind, config.proxy.path) == ("huggingface", "model")
    assert config.tokenizer.tokenizer_model == "model/tokenizer.json"
    assert config.objective.target_aggregation == "mean"  # of one target


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        *[("web_valid", True), ("Test-set", True), ("heldout0", True), ("news.validation", True)],
        *[("latest_news", False), ("devices", False), ("invalid_json", False), ("contests", False)],
    ],
)
def test_a_word_of_its_own_makes_a_dataset_a_target(name: str, held_out: bool) -> None:
    assert bool(HELD_OUT.search(name)) == held_out


def test_config_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    undocumented = {"sources[].name"} - {key.name for key in keys() if key.explanation}
    assert undocumented == set()
    assert cli.main(["config"]) == 0
    out = capsys.readouterr().out
    for key in keys():
        assert f"{key.name}: {key.default}    (" in out
    (lr,) = find_keys("training.lr")
    assert (lr.default, lr.type) == ("0.002", "float")
    assert lr.explanation == "Peak learning rate η of AdamW."
    assert {key.name for key in find_keys("proxy")} >= {"proxy.kind", "proxy.num_query_groups"}
    assert [key.name for key in find_keys("--num-query-groups")] == ["proxy.num_query_groups"]
    for asked in ("--global-batch-size", "GLOBAL_BATCH_SIZE", "--fastmix-global-batch-size"):
        assert [key.name for key in find_keys(asked)] == ["training.global_batch_size"]
    assert [key.name for key in find_keys("sources.path")] == ["sources[].path"]


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--bf16", "engine.dtype: bf16"),
        ("--data-path", "sources"),
        ("--save", "run_dir"),
        ("--num-gpus", "--num-ranks"),
        ("training.lrr", "training.lr"),
        ("engine.zero", "are engine.zero_stage,"),
        ("zero", "are engine.zero_stage,"),
        ("TRAINING.LRR", "are training.lr,"),
        ("learning_rate", "training.lr"),
        ("training.learning_rate", "training.lr"),
        ("hidden", "are proxy.hidden_size,"),
        ("entropy", "are objective.entropy_weight,"),
        ("n1", "are mixture.inner_steps"),
        ("sources.pth", "are sources[].path,"),
        ("--split", "preprocess --split"),
        ("--expert-model-parallel-size", "every rank holds all experts"),
        ("--finetune", "proxy.checkpoint"),
        ("--nnodes", "search_multinode.sh"),
        ("--quantum", "nearest are"),
    ],
)
def test_config_knows_what_is_meant(
    flag: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", flag]) == 2
    assert meant in capsys.readouterr().err


def test_megatrons_flags_are_explained_where_they_are_typed() -> None:
    for override, meant in (
        ("--bf16", "engine.dtype: bf16"),
        ("--split=99,1,0", "preprocess --sp"),
    ):
        with pytest.raises(ConfigError, match=f"here.*{meant}"):
            apply_overrides(SearchConfig, {}, [override])
    values = apply_overrides(SearchConfig, {}, ["--num-experts=4"])  # which is a key besides
    assert values["proxy"]["num_experts"] == 4


def test_what_megatrons_users_mean_is_no_key_and_names_keys_that_are() -> None:
    names = {key.name for key in keys()}
    lasts = {name.rpartition(".")[2] for name in names}
    for flag, meaning in MEANINGS.items():
        for word in meaning.replace(",", " ").replace(":", " ").replace(";", " ").split():
            section, dot, _ = word.partition(".")
            if dot and section in ("engine", "proxy", "training", "mixture", "data"):
                assert word in names, (flag, word)
    assert "bf16" not in lasts
    with pytest.raises(ConfigError, match="nearest are"):
        find_keys("quantum")


@pytest.mark.parametrize(
    "flag",
    [
        *("per-split-data-args-path", "sft", "test-data-path", "rampup-batch-size"),
        *("norm-epsilon", "overlap-grad-reduce", "deepspeed", "optimizer"),
    ],
)
def test_a_flag_of_megatrons_is_told_from_a_key(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["config", f"--{flag}"])
    said = "".join(capsys.readouterr())
    assert MEANINGS[flag] in said
    assert cli.main(["config", "num-experts"]) == 0
    assert "Megatron's" not in capsys.readouterr().out


def test_every_shipped_file_is_packaged() -> None:
    setup = (SHIPPED.parent.parent / "setup.py").read_text()
    assert '"configurations/*.yaml"' in setup
    for text in shipped_configurations().values():
        assert yaml.safe_load(text)["run_dir"].startswith("runs/")


@pytest.mark.parametrize(
    ("hours", "text"), [(12.3, "12 hours"), (0.5, "30 minutes"), (0.007 / 60, "0.42 seconds")]
)
def test_a_time_is_told_in_a_unit_of_which_it_has_one(hours: float, text: str) -> None:
    assert estimated_time(hours) == text
