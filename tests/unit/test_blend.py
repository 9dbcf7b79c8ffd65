"""The patched blend, through Megatron-core's real builder."""

from types import SimpleNamespace

import numpy as np
import pytest
from megatron.core.datasets import blended_megatron_dataset_builder as builder_module
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_fastmix import blend
from megatron_fastmix.blend import patch
from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.mixture import Mixture
from tests.conftest import SEQ_LENGTH, SOURCES


@pytest.fixture
def mixture():
    return Mixture(list(SOURCES), MixtureConfig())


@pytest.fixture(autouse=True)
def no_patch_stays():
    yield
    blend.uninstall()


def build(corpora, weights=None, sizes=(None, None, None)):
    paths = [str(corpora / name) for name in SOURCES]
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=(paths, weights),
        split="80,20,0",
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


def test_samples_have_the_keys_and_types_of_megatrons(corpora, mixture):
    theirs = build(corpora, [1.0, 1.0, 1.0], (40, 8, 0))[0]
    with blend.install(mixture):
        ours = build(corpora, [1.0, 1.0, 1.0], (40, 8, 0))[0]
    assert len(ours) == len(theirs)
    one, two = ours[0], theirs[0]
    assert one.keys() == two.keys()
    for key in one:
        assert type(one[key]) is type(two[key])
        assert one[key].dtype == two[key].dtype
        assert np.shape(one[key]) == np.shape(two[key])
    for name in vars(theirs):
        if "index" not in name:  # the arrays that we do not need
            assert hasattr(ours, name), name


def test_sources_are_drawn_evenly_and_every_sample_once_an_epoch(corpora, mixture):
    with blend.install(mixture, block_size=6, num_samples=3000):
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


def test_a_sample_past_the_end_is_refused(corpora, mixture):
    with blend.install(mixture, num_samples=10):
        train = build(corpora)[0]
    with pytest.raises(IndexError, match="sample 10 of a blend of 10"):
        train[10]


def test_a_mixture_of_other_sources_is_refused(corpora):
    with (
        blend.install(Mixture(["a", "b"], MixtureConfig())),
        pytest.raises(DataError, match=r"3 datasets, the mixture 2 sources \(a, b\)"),
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


def test_a_source_without_a_sample_is_refused_by_name(mixture):
    class Samples(list):
        index_split = SimpleNamespace(name="train")
        dataset_path = "/data/some"

    datasets = [Samples([1, 2]), Samples(), Samples([3])]
    with pytest.raises(DataError, match=r"source backward \(/data/some\): no sample of 32 tokens"):
        FastMixBlendedDataset(
            datasets,
            [1, 1, 1],
            None,
            SimpleNamespace(sequence_length=32, random_seed=0),
            mixture=mixture,
        )
