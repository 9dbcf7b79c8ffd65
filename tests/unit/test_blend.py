"""The patched blend, through Megatron-core's real builder."""

import numpy as np
import pytest
from megatron.core.datasets import blended_megatron_dataset_builder as builder_module
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_fastmix import blend
from megatron_fastmix.blend import LiveMixture, patch
from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.mixture.mixture import Mixture
from tests.conftest import SEQ_LENGTH, SOURCES


@pytest.fixture
def mixture():
    return Mixture(list(SOURCES), MixtureConfig(weighting="loss"))


@pytest.fixture(autouse=True)
def no_patch_stays():
    yield
    blend.uninstall()


def build(corpora, weights=(1, 1, 1), sizes=(300, 9, 0), split="80,20,0"):
    paths = [str(corpora / name) for name in SOURCES]
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=(paths, list(weights) if weights else None),
        split=split,
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, list(sizes), lambda: True, config).build()


def test_the_train_split_alone_is_ours(corpora, mixture):
    with blend.install(mixture):
        train, valid, test = build(corpora)
    assert type(train) is FastMixBlendedDataset
    assert isinstance(train, BlendedDataset)
    assert type(valid) is BlendedDataset
    assert test is None


def test_uninstalled_megatron_builds_its_own_blend_again(corpora, mixture):
    blend.install(mixture)
    blend.uninstall()
    assert builder_module.BlendedDataset is BlendedDataset
    assert type(build(corpora)[0]) is BlendedDataset


def test_sources_are_drawn_evenly_and_every_sample_once_an_epoch(corpora, mixture):
    with blend.install(mixture, block_size=6, num_samples=3000, order="shuffled"):
        train = build(corpora)[0]
    assert len(train) == 3000
    draws = [train.order.draw(i) for i in range(600)]
    for first in range(0, 600, 6):
        assert np.bincount([d.source for d in draws[first : first + 6]]).tolist() == [2, 2, 2]
    size = len(train.datasets[1])
    tokens = [tuple(train.sample("train", 1, i)["tokens"].tolist()) for i in range(2 * size)]
    assert sorted(tokens[:size]) == sorted(tokens[size:])
    assert tokens[:size] != tokens[size:]


def test_moving_the_mixture_moves_the_loss_weights_and_not_the_draws(corpora, mixture):
    with blend.install(mixture):
        train = build(corpora)[0]
    before = [int(train[i]["dataset_id"]) for i in range(30)]
    mixture.update(np.array([1.0, -1.0, 0.0]))
    assert [int(train[i]["dataset_id"]) for i in range(30)] == before
    assert train.mixture.loss_weights.sum() == pytest.approx(3)
    assert train.mixture.loss_weights[1] > 1


def test_every_split_that_is_named_is_ours(corpora, mixture):
    with blend.install(mixture, splits=("train", "valid")):
        train, valid, _ = build(corpora, [1.0, 1.0, 1.0], (40, 20, 0))
    assert type(train) is type(valid) is FastMixBlendedDataset
    assert len(valid) == 21  # Megatron asks for 7 of each


def build_each_sample_once(corpora):
    return build(corpora, None, (None, None, None))


def test_a_blend_without_weights_stays_megatrons(corpora, mixture, caplog):
    theirs = build_each_sample_once(corpora)[0]
    with blend.install(mixture):
        ours = build_each_sample_once(corpora)[0]
        given = build(corpora, None, (12, 9, 0))[0]
    assert type(ours) is type(given) is BlendedDataset
    assert [len(d) for d in ours.datasets] == [len(d) for d in theirs.datasets]
    assert len(ours) == sum(len(d) for d in ours.datasets)
    assert "the train blend has no weights" in caplog.text
    with blend.install(mixture, num_samples=3000):
        assert type(build_each_sample_once(corpora)[0]) is FastMixBlendedDataset


def test_uninstalled_megatron_sizes_its_datasets_again(corpora, mixture):
    one_epoch = [len(dataset) for dataset in build_each_sample_once(corpora)[0].datasets]
    with blend.install(mixture):
        ours = build(corpora, [0.8, 0.1, 0.1], (4000, 8, 0))[0]
    theirs = build(corpora, [0.8, 0.1, 0.1], (4000, 8, 0))[0]
    assert [len(dataset) for dataset in ours.datasets] == one_epoch
    assert len(theirs.datasets[0]) >= 3200
    assert len(ours) == len(theirs) == 4000


def test_weights_of_zero_and_many_epochs_go_through_the_builder(corpora):
    mixture = LiveMixture(dict(zip(SOURCES, (0.0, 1.0, 3.0), strict=True)), block_size=8)
    with blend.install(mixture, weighting="sampling"):
        train = build(corpora, [0.0, 0.5, 0.5], (8000, 0, 0), split="100,0,0")[0]
    counts = np.bincount([train.order.draw(i).source for i in range(4000)], minlength=3)
    assert counts.tolist() == [0, 1000, 3000]
    assert train.usage()["noise"].epochs > 10
    assert int(train[7999]["dataset_id"]) > 0


def test_a_sample_past_the_end_is_refused(corpora, mixture):
    with blend.install(mixture, num_samples=10):
        train = build(corpora)[0]
    with pytest.raises(IndexError, match="sample 10 of a blend of 10"):
        train[10]


def test_a_mixture_of_other_sources_is_refused(corpora):
    with (
        blend.install(Mixture(["a", "b"], MixtureConfig(weighting="loss"))),
        pytest.raises(DataError, match=r"3 datasets, the mixture 2 sources \(a, b\)"),
    ):
        build(corpora)


def test_the_live_mixtures_block_size_is_the_blends(corpora):
    live = LiveMixture(dict.fromkeys(SOURCES, 1.0), block_size=24)
    with blend.install(live, weighting="sampling"):
        assert build(corpora)[0].order.block_size == 24
    with pytest.raises(ConfigError, match="block_size: found 12; the mixture was made with 24"):
        blend.install(live, block_size=12)


def test_draws_follow_a_searchs_mixture(corpora, mixture):
    with blend.install(mixture, weighting="sampling", block_size=30, samples_per_update=60):
        train = build(corpora)[0]
    mixture.update(np.array([1.0, -1.0, 0.0]))
    mixture.update(np.array([1.0, -1.0, 0.0]))
    sources = np.array([int(train[i]["dataset_id"]) for i in range(180)]).reshape(-1, 30)
    counts = np.array([np.bincount(block, minlength=3) for block in sources])
    steps = np.repeat(np.stack(mixture.history), 2, axis=0)
    assert counts[0].tolist() == [10, 10, 10]
    assert np.all(np.abs(counts - 30 * steps) < 1)
    assert not np.allclose(steps[0], steps[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "both"}, "weighting: found 'both'"),
        ({"order": "sorted"}, "order: found 'sorted'"),
        ({"block_size": -1}, "block_size: found -1"),
        ({"num_samples": 0}, "num_samples: found 0"),
        ({"splits": ("train", "dev")}, "splits: found"),
        ({"max_epochs": 0}, "max_epochs: found 0"),
        ({"max_epochs": {"noise": float("nan")}}, "max_epochs: found nan"),
        ({"order": "shuffled", "max_epochs": 2}, "take order spread"),
        ({"weighting": "sampling"}, "samples_per_update: missing"),
        (
            {"weighting": "sampling", "samples_per_update": 1000},
            "samples_per_update: found 1000; use a multiple of the block size 1024",
        ),
        (
            {"weighting": "sampling", "samples_per_update": 1024, "fold_loss_mask": True},
            "applies the mixture twice",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(mixture, options, message):
    with pytest.raises(ConfigError, match=message):
        blend.install(mixture, **options)
    assert builder_module.BlendedDataset is BlendedDataset


def test_a_mixture_for_sampling_is_not_weighed_by_loss():
    mixture = Mixture(["a", "b"], MixtureConfig(weighting="sampling"))
    with pytest.raises(ConfigError, match="weighting: found loss, but the mixture is configured"):
        blend.install(mixture, weighting="loss")
    assert builder_module.BlendedDataset is BlendedDataset


def test_a_cap_on_an_unknown_source_is_refused(corpora, mixture):
    with (
        blend.install(mixture, max_epochs={"nose": 2}),
        pytest.raises(ConfigError, match="max_epochs: nose: no such source; sources: forward"),
    ):
        build(corpora)


def test_installing_twice_is_refused(mixture):
    blend.install(mixture)
    with pytest.raises(ConfigError, match="installed already"):
        blend.install(mixture)


def test_an_unknown_megatron_is_refused_by_name(monkeypatch, mixture):
    monkeypatch.setattr(patch, "megatron_version", "0.31.0")
    with pytest.raises(ConfigError, match=r"megatron-core 0\.31\.0 is not known"):
        blend.install(mixture)
