"""Datasets told by their paths, and sources of several datasets."""

import logging
import time

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split

from megatron_fastmix import blend
from megatron_fastmix.blend import LiveMixture
from megatron_fastmix.blend.shards import Shards
from megatron_fastmix.blend.source_paths import match_sources
from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from megatron_fastmix.result.mixture_file import write_mixture
from tests.conftest import SEQ_LENGTH


@pytest.fixture(autouse=True)
def no_patch_stays():
    yield
    blend.uninstall()


def test_prefixes_folders_and_patterns_find_their_sources():
    sources = {"web": ["/d/web"], "code": ["/d/code_*"], "books": ["/d/books", "/e/more"]}
    prefixes = ["/d/code_1", "/d/books/one", "/d/../d/web", "/e/more", "/d/code_0"]
    assert match_sources(sources, prefixes) == {"web": [2], "code": [0, 4], "books": [1, 3]}


def test_a_link_is_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = match_sources({"web": [str(tmp_path / "link/web")]}, [str(tmp_path / "real/web")])
    assert found == {"web": [0]}


def test_moved_data_is_told_by_the_last_part_and_said(caplog):
    sources = {"web": ["/old/web_text"], "code": ["/old/code"]}
    with caplog.at_level(logging.WARNING):
        assert match_sources(sources, ["/new/code", "/new/web_text"]) == {"web": [1], "code": [0]}
    assert "/new/web_text is taken for source web" in caplog.text


def test_moved_datasets_of_a_source_are_told_each_and_missing_ones_said(caplog):
    sources = {"web": ["/old/web_0", "/old/web_1"], "code": ["/old/code"]}
    with caplog.at_level(logging.WARNING):
        found = match_sources(sources, ["/new/web_0", "/new/code", "/new/web_1"])
    assert found == {"web": [0, 2], "code": [1]}
    assert "datasets of source" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert match_sources(sources, ["/old/web_1", "/old/code"]) == {"web": [0], "code": [1]}
    assert "the blend has 1 of the 2 datasets of source web" in caplog.text


@pytest.mark.parametrize(
    ("sources", "prefixes", "message"),
    [
        ({"a": ["/d/a"]}, ["/d/a", "/d/b"], "no source of the mixture: /d/b"),
        ({"a": ["/d/a"], "b": ["/d/b"]}, ["/d/a"], r"without a dataset in the blend: b \(/d/b\)"),
        ({"a": ["/d/a"]}, ["/d/a", "/d/./a"], "more than once"),
        ({"a": ["/d"], "b": ["/d/x*"]}, ["/d/x1"], "belongs to the sources a, b"),
        ({"a": ["/d/t"], "b": ["/e/t"]}, ["/n/t", "/n/b"], "no source of the mixture: /n/t"),
    ],
)
def test_differences_are_named(sources, prefixes, message):
    with pytest.raises(DataError, match=message):
        match_sources(sources, prefixes)


def test_thousands_of_moved_datasets_are_matched_at_once(caplog):
    sources = {f"s{k}": [f"/old/s{k}/part_{k}_{n}" for n in range(60)] for k in range(50)}
    prefixes = [path.replace("/old", "/new") for paths in sources.values() for path in paths]
    began = time.process_time()
    found = match_sources(sources, prefixes)
    assert time.process_time() - began < 20  # compared in pairs they took minutes
    assert found == {f"s{k}": list(range(60 * k, 60 * k + 60)) for k in range(50)}
    folders = {name: [f"/new/{name}"] for name in sources}
    assert match_sources(folders, prefixes) == found
    with pytest.raises(DataError, match=r"other \(/x/0, /x/1, /x/2 and 57 more\)"):
        match_sources(folders | {"other": [f"/x/{n}" for n in range(60)]}, prefixes)


def test_a_source_without_weight_may_have_no_dataset():
    sources = {"a": ["/d/a"], "b": ["/d/b"]}
    assert match_sources(sources, ["/d/a"], optional=["b"]) == {"a": [0]}


def build(prefixes, mixture, sources, size=120, **options):
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=(prefixes, [1.0] * len(prefixes)),
        split="100,0,0",
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    options = {"weighting": "sampling", "sources": sources} | options
    with blend.install(mixture, **options):
        sizes = [size, 0, 0]
        return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]


def test_the_order_of_data_path_does_not_matter(corpora):
    names = ["forward", "backward", "noise"]
    mixture = LiveMixture(dict(zip(names, (0.5, 0.25, 0.25), strict=True)), block_size=8)
    paths = {name: [str(corpora / name)] for name in names}
    built = []
    orders = (names, list(reversed(names)))
    for order in orders:
        build([str(corpora / n) for n in order], mixture, paths, on_build=built.append)
    one, two = built
    assert [d.dataset_path for d in one.datasets] == [d.dataset_path for d in two.datasets]
    for i in range(0, 120, 7):
        assert one[i]["dataset_id"] == two[i]["dataset_id"] == one.source_of(i)
        assert one[i]["tokens"].tolist() == two[i]["tokens"].tolist()


def test_shards_are_one_source_and_each_sample_comes_once_an_epoch(corpora):
    shards = [str(corpora / name) for name in ("noise", "noise_too")]
    mixture = LiveMixture({"forward": 0.5, "noise": 0.5}, block_size=8)
    sources = {"forward": [str(corpora / "forward")], "noise": [str(corpora / "noise*")]}
    train = build([*shards, str(corpora / "forward")], mixture, sources, size=4000)
    assert [type(dataset) for dataset in train.datasets] == [Shards, Shards]
    source = train.datasets[1]
    size = sum(len(dataset) for dataset in source.datasets)
    assert len(source) == train.epoch_sizes[1] == size
    tokens = [tuple(train.sample("train", 1, i)["tokens"].tolist()) for i in range(size)]
    whole = [tuple(d[i]["tokens"].tolist()) for d in source.datasets for i in range(len(d))]
    assert sorted(tokens) == sorted(whole)
    assert train.draws_before(800) == {"forward": 400, "noise": 400}
    assert int(train[0]["dataset_id"]) in (0, 1)


def test_a_mixture_from_a_file_tells_its_sources_by_their_paths(corpora, make_mixture, tmp_path):
    mixture = make_mixture({"forward": 0.9, "noise": 0.1}, folder=str(corpora))
    write_mixture(tmp_path / "mixture.json", mixture)
    live = LiveMixture.from_mixture_file(tmp_path, block_size=10)
    train = build([str(corpora / "noise"), str(corpora / "forward")], live, None, size=100)
    assert [d.dataset_path for d in train.datasets] == [str(corpora / n) for n in live.names]
    assert train.draws_before(100) == {"forward": 90, "noise": 10}


def test_what_no_blend_file_writes_may_be_in_the_blend_or_not(corpora, make_mixture, tmp_path):
    weights = {"forward": 0.9, "noise": 0.09999, "backward": 0.00001}
    write_mixture(tmp_path / "mixture.json", make_mixture(weights, folder=str(corpora)))
    live = LiveMixture.from_mixture_file(tmp_path, block_size=10)
    paths = {name: [str(corpora / name)] for name in weights}
    for names in (["noise", "forward"], ["backward", "noise", "forward"]):
        for sources in (None, paths):
            train = build([str(corpora / name) for name in names], live, sources, size=100)
            assert train.draws_before(100) == {"forward": 90, "noise": 10}


def test_sources_that_are_left_out_may_be_in_the_blend(corpora):
    mixture = LiveMixture({"forward": 0.9, "noise": 0.1}, block_size=10)
    sources = {name: [str(corpora / name)] for name in mixture.names}
    left_out = {"backward": [str(corpora / "backward")]}
    drawn = [str(corpora / name) for name in ("noise", "forward")]
    for prefixes in (drawn, [left_out["backward"][0], *drawn]):
        train = build(prefixes, mixture, sources, size=100, left_out=left_out)
        assert train.draws_before(100) == {"forward": 90, "noise": 10}
    with pytest.raises(DataError, match=r"no source of the mixture: .*backward"):
        build([left_out["backward"][0], *drawn], mixture, sources, size=100)


class Asked(MegatronDataset):
    """As Megatron's SFTDataset: as long as asked for, by rows that are read again and again."""

    @staticmethod
    def build_low_level_dataset(dataset_path, config):
        return range(int(dataset_path.rpartition("-")[2]))

    @staticmethod
    def numel_low_level_dataset(low_level_dataset):
        return len(low_level_dataset)

    def __len__(self):
        return self.num_samples

    def __getitem__(self, idx):
        return {"number": int(self.indices[idx % len(self.indices)])}


def test_a_class_without_a_length_of_its_own_has_its_rows_as_an_epoch():
    config = BlendedMegatronDatasetConfig(
        random_seed=3, sequence_length=4, blend=(["a-30", "b-50"], [1.0, 1.0]), split="100,0,0"
    )
    mixture = LiveMixture({"a": 0.5, "b": 0.5}, block_size=10)
    with blend.install(mixture, weighting="sampling"):
        train = BlendedMegatronDatasetBuilder(Asked, [200, 0, 0], lambda: True, config).build()[0]
    assert train.split is Split.train
    assert train.epoch_sizes == [30, 50]
    read = [(int(train[i]["dataset_id"]), train[i]["number"]) for i in range(200)]
    assert sorted(np.bincount([n for k, n in read if k == 1])) == [2] * 50


def test_an_update_past_the_end_of_the_blend_is_warned_of(corpora, caplog):
    mixture = LiveMixture({"forward": 0.5, "noise": 0.5}, block_size=8)
    sources = {name: [str(corpora / name)] for name in mixture.names}
    train = build([str(corpora / name) for name in mixture.names], mixture, sources, size=40)
    # The first draw of a cyclic loader may be the last sample.
    train[len(train) - 1]
    with caplog.at_level(logging.WARNING):
        mixture.update({"forward": 0.1, "noise": 0.9})
    assert "past the end of the blend (40 samples)" in caplog.text


@pytest.mark.parametrize("folded", [False, True])
def test_a_schedule_for_a_longer_run_is_warned_of(corpora, caplog, folded):
    weights = {"forward": 0.5, "noise": 0.5}
    other = {"forward": 0.1, "noise": 0.9}
    sources = {name: [str(corpora / name)] for name in weights}
    weighting = {"weighting": "loss", "fold_loss_mask": True} if folded else {}
    for at, warned in ((32, False), (40, True)):
        schedule = WeightSchedule(
            changes=(Change(at_sample=0, weights=weights), Change(at_sample=at, weights=other))
        )
        mixture = LiveMixture.from_schedule(schedule, block_size=8)
        prefixes = [str(corpora / name) for name in weights]
        build(prefixes, mixture, sources, size=40, **weighting)
        assert ("change at sample 40, past the end of the blend (40" in caplog.text) == warned
