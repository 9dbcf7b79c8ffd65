"""The patch layer under `megatron.training`: arguments parsed late, and its SFT dataset."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("megatron.training", reason="megatron.training comes with megatron-core 0.19")

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.training import global_vars
from megatron.training.arguments import parse_args
from megatron.training.datasets.sft_dataset import SFTDataset

from megatron_fastmix import blend
from megatron_fastmix.blend import LiveMixture
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.megatron.argument_checks import name_validation_sets
from tests.conftest import SEQ_LENGTH, SOURCES


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    blend.uninstall()
    global_vars.set_args(None)


def build(cls, paths, sizes):
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=(paths, [1.0] * len(paths)),
        split="100,0,0",
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(cls, sizes, lambda: True, config).build()[0]


def test_arguments_parsed_after_the_mixture_was_installed_are_checked(corpora, monkeypatch):
    paths = [str(corpora / name) for name in SOURCES]
    mixture = LiveMixture(dict.fromkeys(SOURCES, 1.0), block_size=12)
    blend.install(mixture, weighting="loss", fold_loss_mask=True)
    for flags, fits in (([], False), (["--calculate-per-token-loss"], True)):
        monkeypatch.setattr(sys, "argv", ["script", *flags])
        global_vars.set_args(parse_args())
        if fits:
            assert len(build(GPTDataset, paths, [60, 0, 0])) == 60
        else:
            with pytest.raises(ConfigError, match="add --calculate-per-token-loss"):
                build(GPTDataset, paths, [60, 0, 0])


def test_megatrons_sft_dataset_has_its_rows_as_an_epoch(tmp_path):
    paths = []
    for name, rows in (("a", 7), ("b", 5)):
        path = tmp_path / f"{name}.jsonl"
        message = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        path.write_text((json.dumps({"messages": message}) + "\n") * rows)
        paths.append(str(path))
    mixture = LiveMixture({"a": 0.75, "b": 0.25}, block_size=4)
    blend.install(mixture, weighting="sampling", max_epochs={"a": 3})
    train = build(SFTDataset, paths, [40, 0, 0])
    assert train.epoch_sizes == [7, 5]
    usage = train.usage()
    assert usage["a"].draws == 21
    assert usage["b"].draws == 19


def test_megatron_takes_names_of_validation_sets(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--multiple-validation-sets"])
    args = parse_args()
    name_validation_sets(args, ["/v/web", "/v/code"])
    assert args.validation_set_names == ["web", "code"]
