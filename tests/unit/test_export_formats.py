"""Blends for tools other than Megatron-LM, checked against what each tool documents."""

import ast
import dataclasses
import json
import math
import shlex

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import get_blend_from_list

from megatron_fastmix.cli.main import main
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import write_mixture


def text_of(name: str, mixture: LearnedMixture) -> str:
    """The mixture in a format."""
    return FORMATS[name].render(make_blend(mixture, FORMATS[name].counts))


@pytest.fixture
def export(make_mixture):
    """A function: the text of a format for weights a 0.7, b 0.3 and a c that rounds to 0."""

    def export(name: str, folder: str = "/data") -> str:
        mixture = make_mixture({"a": 0.7, "b": 0.299999, "c": 0.000001}, folder=folder)
        return text_of(name, mixture)

    return export


BY_NAME = {"llama-factory"}
"""Formats that name datasets and hold no paths."""


@pytest.mark.parametrize("name", sorted(set(FORMATS) - BY_NAME))
def test_every_format_leaves_out_what_rounds_to_zero(export, name):
    text = export(name)
    assert "/data/a" in text
    assert "/data/c" not in text
    assert text.endswith("\n")


@pytest.mark.parametrize(
    "name", sorted(set(FORMATS) - BY_NAME - {"megatron-data-args", "model-optimizer"})
)
def test_paths_with_quotes_and_colons_survive(export, name):
    folder = "/a: 'b' \"c\" #d é"
    text = export(name, folder)
    if name == "megatron-cli":
        values = shlex.split(text)
    elif name == "hf-datasets":
        values = run_python(text)["SOURCES"]
    else:
        values = ast.literal_eval(text[6:]) if name == "nemo-2" else yaml.safe_load(text)
    assert any(found.startswith(f"{folder}/a") for found in strings(values))


def test_llama_factory_names_what_it_interleaves(export):
    section = yaml.safe_load(export("llama-factory"))
    assert section["dataset"] == "a,b"
    assert section["interleave_probs"] == "0.700000,0.300000"
    assert section["mix_strategy"] == "interleave_over"


def run_python(text: str) -> dict:
    """The names that a Python file defines."""
    pytest.importorskip("datasets", reason="the extra `test` has it")
    names: dict = {}
    exec(compile(text, "blend.py", "exec"), names)
    return names


def strings(value: object) -> list[str]:
    """All text in nested lists and mappings."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_megatron_bridge_is_what_megatron_cores_builder_takes(corpora, make_mixture):
    blend = make_blend(make_mixture({"forward": 0.75, "noise": 0.25}, folder=str(corpora)))
    section = yaml.safe_load(FORMATS["megatron-bridge"].render(blend))["dataset"]
    # A recipe's own blend and split would be refused beside blend_per_split.
    assert section["blend"] is section["split"] is None
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=32,
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        **section,
    )
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [100, 10, 0], lambda: True, config)
    train, valid, test = builder.build()
    drawn = [int(train[i]["dataset_id"]) for i in range(100)]
    assert drawn.count(0) == pytest.approx(75, abs=1)
    assert len(valid) >= 10
    assert test is None


def test_nemo_2_is_a_python_argument_that_megatrons_parser_reads(export):
    call = ast.parse(f"f({export('nemo-2')})", mode="eval").body
    assert isinstance(call, ast.Call)
    (argument,) = call.keywords
    assert argument.arg == "paths"
    paths = ast.literal_eval(argument.value)
    assert get_blend_from_list(paths) == (["/data/a", "/data/b"], [0.7, 0.3])


def test_nemo_1_alternates_numbers_and_prefixes(export):
    values = yaml.safe_load(export("nemo-1"))
    assert values == {"model": {"data": {"data_prefix": [0.7, "/data/a", 0.3, "/data/b"]}}}


def test_gpt_neox_gets_paths_and_weights_of_all_three_splits(export):
    values = json.loads(export("gpt-neox"))
    assert values["train-data-paths"] == ["/data/a", "/data/b"]
    assert values["train-data-weights"] == [0.7, 0.3]
    for split in ("valid", "test"):
        assert values[f"{split}-data-paths"] == ["/data/target"]
        assert values[f"{split}-data-weights"] == [1.0]
    assert len(values) == 6


def test_nanotron_gets_as_many_weights_as_folders(export):
    assert yaml.safe_load(export("nanotron")) == {
        "dataset": {"dataset_folder": ["/data/a", "/data/b"], "dataset_weights": [0.7, 0.3]}
    }


def test_energon_blends_by_weight(export):
    assert yaml.safe_load(export("energon")) == {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {
            "train": {
                "blend": [{"weight": 0.7, "path": "/data/a"}, {"weight": 0.3, "path": "/data/b"}]
            }
        },
    }


def test_streaming_gets_a_proportion_for_every_stream(export):
    assert yaml.safe_load(export("mosaicml-streaming")) == {
        "streams": {
            "a": {"local": "/data/a", "proportion": 0.7},
            "b": {"local": "/data/b", "proportion": 0.3},
        }
    }


def test_olmo_core_reads_the_bin_files(export):
    first, second = yaml.safe_load(export("olmo-core"))["sources"]
    # 0.7 of a budget of 10,000 tokens from a source of 5,000: 1.4 epochs.
    assert first == {
        "source_name": "a",
        "target_ratio": 0.7,
        "max_repetition_ratio": 1.41,
        "paths": ["/data/a.bin"],
    }
    assert second["max_repetition_ratio"] == 1.0


@given(
    st.integers(1, 9_999),
    st.integers(100, 10**12),
    st.integers(100, 10**13),
)
def test_olmo_core_never_lacks_tokens_for_the_budget(
    make_mixture, with_sizes, share, tokens, budget
):
    weights = {"a": share / 10_000, "b": 1 - share / 10_000}
    mixture = with_sizes(
        make_mixture(weights, token_budget=budget), a={"tokens": tokens}, b={"tokens": tokens}
    )
    sources = yaml.safe_load(text_of("olmo-core", mixture))["sources"]
    assert math.isclose(sum(source["target_ratio"] for source in sources), 1)
    for source in sources:
        assert source["max_repetition_ratio"] >= 1
        needed = int(budget * source["target_ratio"])
        assert int(tokens * source["max_repetition_ratio"]) >= needed


def test_the_command_says_what_is_left_to_do(tmp_path, make_mixture, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 1.0}))
    assert main(["export", str(tmp_path), "--format", "nanotron"]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("note: this tool reads no .bin/.idx")
    assert yaml.safe_load(output.out)["dataset"]["dataset_weights"] == [1.0]


HUGE = {"tokens": 10**13, "loss_tokens": 10**13, "rows": 10**9}


@pytest.mark.parametrize(
    "name", ["energon-epochized", "mosaicml-streaming-repeat", "megatron-bridge-sources"]
)
def test_a_source_that_would_never_be_read_is_refused(make_mixture, name):
    mixture = make_mixture({"a": 0.6, "b": 0.4}, token_budget=1)
    huge = tuple(
        dataclasses.replace(source, shards=(dataclasses.replace(source.shards[0], **HUGE),))
        for source in mixture.sources
    )
    mixture = dataclasses.replace(mixture, sources=huge)
    with pytest.raises(DataError, match=r"source a: is read 0.000000 times in the token budget"):
        text_of(name, mixture)


def test_rows_are_for_tools_that_draw_them():
    with pytest.raises(ConfigError, match="--rows documents: this format's weights are shares of"):
        FORMATS["megatron-cli"].unit("documents")


def test_many_sources_keep_their_shares(make_mixture):
    weights = {f"s{number}": 1 / 12_000 for number in range(12_000)}
    assert not make_blend(make_mixture(weights)).left_out
    assert make_blend(make_mixture(weights), decimals=4).left_out
