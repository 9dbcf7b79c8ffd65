"""Our blend beside Megatron-core's `BlendedDataset`, over the same datasets."""

import copy
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from megatron.core.datasets.bert_dataset import (
    BERTMaskedWordPieceDataset,
    BERTMaskedWordPieceDatasetConfig,
)
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTLowLevelDataset
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.multimodal_dataset import (
    MockMultimodalDataset,
    MultimodalDatasetConfig,
)
from megatron.core.datasets.utils import Split

from megatron_fastmix import blend
from megatron_fastmix.blend import LiveMixture
from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.blend.options import BlendOptions
from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from tests.conftest import SEQ_LENGTH, SOURCES

TOKENIZER = load_tokenizer("ByteLevelTokenizer")
SAMPLING = BlendOptions(weighting="sampling", block_size=10)


class Numbered(MegatronDataset):
    """The smallest real dataset of Megatron-core: sample i is i."""

    @staticmethod
    def build_low_level_dataset(dataset_path, config):
        return range(int(dataset_path.rpartition("-")[2]))

    @staticmethod
    def numel_low_level_dataset(low_level_dataset):
        return len(low_level_dataset)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, idx):
        return {"number": int(self.indices[idx]), "loss_mask": torch.ones(4)}


def config_of(**changes):
    return BlendedMegatronDatasetConfig(**{"random_seed": 3, "sequence_length": 4} | changes)


def numbered(sizes, split=Split.train, config=None):
    config = config or config_of()
    return [
        Numbered(range(size), f"source{k}-{size}", np.arange(size), None, split, config)
        for k, size in enumerate(sizes)
    ]


def ours_of(sizes, weights, length, **options):
    mixture = LiveMixture({f"s{k}": w for k, w in enumerate(weights)}, block_size=10)
    blended = FastMixBlendedDataset(
        numbered(sizes),
        [1] * len(sizes),
        length,
        config_of(),
        mixture=mixture,
        options=BlendOptions(**{"weighting": "sampling", "block_size": 10} | options),
    )
    return mixture, blended


@pytest.fixture(scope="module")
def gpt(corpora):
    paths = [str(corpora / name) for name in SOURCES]
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=(paths, [1.0, 1.0, 1.0]),
        split="80,20,0",
        tokenizer=TOKENIZER,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    theirs = BlendedMegatronDatasetBuilder(GPTDataset, [60, 9, 0], lambda: True, config).build()
    return theirs[0], theirs[1]


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize("weights", [[1.0, 2.0, 1.0], [3, 2, 1]])
def test_attributes_keys_types_and_lengths_are_megatrons(gpt, split, weights):
    datasets = gpt[split].datasets
    size = 8 if isinstance(weights[0], float) else None
    pair = [cls(datasets, weights, size, gpt[split].config) for cls in CLASSES]
    theirs, ours = pair
    assert len(ours) == len(theirs)
    assert isinstance(ours, BlendedDataset)
    for name, value in vars(theirs).items():
        assert hasattr(ours, name), name
        if name in ("datasets", "split", "weights", "size", "config"):
            assert getattr(ours, name) == value, name
    one, two = ours[0], theirs[0]
    assert list(one) == list(two)
    for key in one:
        assert type(one[key]) is type(two[key])
        assert one[key].dtype == two[key].dtype
        assert np.shape(one[key]) == np.shape(two[key])
    sources = [Counter(int(b[i]["dataset_id"]) for i in range(len(b))) for b in pair]
    assert sources[0] == sources[1]
    batches = [next(iter(torch.utils.data.DataLoader(b, batch_size=4))) for b in pair]
    assert {k: (v.dtype, v.shape) for k, v in batches[0].items()} == {
        k: (v.dtype, v.shape) for k, v in batches[1].items()
    }


CLASSES = (BlendedDataset, FastMixBlendedDataset)


@pytest.mark.parametrize("cls", CLASSES)
def test_both_count_from_the_end_and_refuse_what_lies_past_it(cls):
    blended = cls(numbered([20, 20]), [1.0, 1.0], 10, config_of())
    assert blended[-1].keys() == blended[9].keys()
    assert blended[-1]["number"] == blended[9]["number"]
    assert blended[np.int64(3)]["number"] == blended[3]["number"]
    for index in (10, -11, 10**12):
        with pytest.raises(IndexError):
            blended[index]


@pytest.mark.parametrize("cls", CLASSES)
def test_both_refuse_datasets_that_do_not_go_together(cls):
    mixed = [*numbered([5]), MockMultimodalDataset.__new__(MockMultimodalDataset)]
    cases = [
        (numbered([5, 5]), [1.0]),
        ([*numbered([5]), *numbered([5], Split.valid)], [1.0, 1.0]),
        (mixed, [1.0, 1.0]),
    ]
    for datasets, weights in cases:
        with pytest.raises(AssertionError):
            cls(datasets, weights, 4, config_of())


def test_what_megatron_refuses_is_drawn():
    with pytest.raises(IndexError, match="oversamples"):
        BlendedDataset(numbered([5, 500]), [0.9, 0.1], 100, config_of())
    with pytest.raises(AssertionError):
        BlendedDataset(numbered([5, 5]), [0.0, 1.0], 4, config_of())
    blended = FastMixBlendedDataset(numbered([5, 500]), [0.9, 0.1], 100, config_of())
    samples = [blended[i] for i in range(100)]
    assert Counter(int(s["dataset_id"]) for s in samples) == {0: 90, 1: 10}
    zero = FastMixBlendedDataset(numbered([5, 5]), [0.0, 1.0], 40, config_of())
    assert {int(zero[i]["dataset_id"]) for i in range(40)} == {1}


@pytest.mark.slow
def test_more_sources_than_int16_holds():
    count = 33_000
    datasets = numbered([1] * count)
    with pytest.raises(AssertionError):
        BlendedDataset(datasets, [1.0] * count, count, config_of())
    blended = FastMixBlendedDataset(datasets, [1.0] * count, 2 * count, config_of())
    assert blended[0]["dataset_id"].dtype == np.int32
    ids = [int(blended[i]["dataset_id"]) for i in range(0, 2 * count, 7)]
    assert max(ids) > 32_767
    assert min(ids) >= 0


def test_ten_billion_samples_of_a_small_source():
    blended = FastMixBlendedDataset(numbered([50, 7]), [0.999, 0.001], 10**10, config_of())
    assert len(blended) == 10**10
    assert blended[10**10 - 1]["number"] < 50
    assert blended.usage()["source1-7"].draws == pytest.approx(10**7, abs=5)


def test_no_sample_repeats_within_an_epoch_and_epochs_reshuffle():
    _, blended = ours_of([30, 13], [0.7, 0.3], 1000)
    numbers = [[], []]
    for i in range(1000):
        sample = blended[i]
        numbers[int(sample["dataset_id"])].append(sample["number"])
    # Inside a block the draws of a source are in any order, so look at whole blocks: 300 draws are
    # 7 epochs of 30 of the first source, and 1000 draws 53.8 epochs in all.
    for source, size in ((0, 30), (1, 13)):
        counts = np.bincount(numbers[source])
        assert len(counts) == size
        assert counts.max() - counts.min() <= 1
    assert Counter(numbers[0][:210]) == dict.fromkeys(range(30), 7)
    assert numbers[0][:30] != numbers[0][210:240]


def test_live_weights_move_the_draws_that_are_to_come():
    mixture, blended = ours_of([50, 50], [1, 0], 400)
    before = [blended[i]["number"] for i in range(100)]
    assert mixture.update([0, 1]) == 100
    assert {int(blended[i]["dataset_id"]) for i in range(100, 200)} == {1}
    assert [blended[i]["number"] for i in range(100)] == before
    mixture.update([1, 1], at_sample=300)
    ids = [int(blended[i]["dataset_id"]) for i in range(290, 400)]
    assert ids[:10] == [1] * 10
    assert sum(ids[10:]) == 50
    fresh = FastMixBlendedDataset(
        blended.datasets, [1, 1], 400, config_of(), mixture=mixture, options=SAMPLING
    )
    for other in (fresh, pickle.loads(pickle.dumps(blended)), copy.deepcopy(blended)):
        for i in range(0, 400, 7):
            one, two = blended[i], other[i]
            assert (one["dataset_id"], one["number"]) == (two["dataset_id"], two["number"])


def test_a_restored_history_replaces_the_draws():
    mixture, blended = ours_of([50, 50], [1, 0], 400)
    state = mixture.state_dict() | {"history": [[0, [0.0, 1.0]]]}
    assert int(blended[5]["dataset_id"]) == 0
    mixture.load_state_dict(state)
    assert int(blended[5]["dataset_id"]) == 1


def test_loss_weighting_draws_evenly_whatever_the_weights():
    mixture, blended = ours_of([50, 50], [0.9, 0.1], 400, weighting="loss")
    mixture.update([0.2, 0.8])
    ids = [int(blended[i]["dataset_id"]) for i in range(400)]
    assert np.array(ids).reshape(-1, 10).sum(axis=1).tolist() == [5] * 40
    assert torch.all(blended[0]["loss_mask"] == 1)


def test_a_folded_loss_mask_carries_the_weight_of_its_sample():
    mixture, blended = ours_of([50, 50], [0.9, 0.1], 400, weighting="loss", fold_loss_mask=True)
    mixture.update([0.25, 0.75], at_sample=200)
    for i in (0, 199, 200, 399):
        sample = blended[i]
        factors = [1.8, 0.2] if i < 200 else [0.5, 1.5]
        expected = torch.ones(4) * factors[int(sample["dataset_id"])]
        assert sample["loss_mask"].dtype == torch.float32
        assert torch.equal(sample["loss_mask"], expected)
    assert mixture.drawn == 400
    # With per-token loss the factors of an even batch leave the number of tokens as it is.
    total = sum(float(blended[i]["loss_mask"].sum()) for i in range(200))
    assert total == pytest.approx(200 * 4)


def test_folding_is_refused_where_megatron_cancels_the_weight():
    global_vars = pytest.importorskip("megatron.training.global_vars")
    mixture = LiveMixture({"a": 1, "b": 1})
    arguments = type("Arguments", (), {"calculate_per_token_loss": False})()
    try:
        global_vars.set_args(arguments)
        with pytest.raises(ConfigError, match="add --calculate-per-token-loss"):
            blend.install(mixture, fold_loss_mask=True)
        arguments.calculate_per_token_loss = True
        blend.install(mixture, fold_loss_mask=True)
    finally:
        blend.uninstall()
        global_vars.set_args(None)


def test_max_epochs_caps_a_source_and_reports_what_it_removes(caplog):
    _, blended = ours_of([40, 1000, 1000], [0.5, 0.3, 0.2], 1000, max_epochs={"s0": 2.5})
    assert "s0 12.50 (cap 2.5); the excess of 400 samples (40.00%)" in caplog.text
    samples = [blended[i] for i in range(1000)]
    numbers = Counter(s["number"] for s in samples if int(s["dataset_id"]) == 0)
    assert sum(numbers.values()) == 100
    assert set(numbers.values()) == {2, 3}
    usage = blended.usage()
    assert usage["s0"] == (40, 500, 100)
    assert usage["s0"].epochs == 2.5
    assert usage["s1"] == (1000, 300, pytest.approx(300 + 0.6 * 400, abs=1))
    assert usage["s2"] == (1000, 200, pytest.approx(200 + 0.4 * 400, abs=1))
    counted = Counter(int(s["dataset_id"]) for s in samples)
    assert [counted[k] for k in range(3)] == [use.draws for use in usage.values()]
    assert blended.exhausted() == {"s0": 200}
    assert blended.exhausted(200) == {}
    assert blended.usage(100)["s0"] == (40, 50, 50)


def test_what_caps_remove_is_told_by_the_whole_schedule(caplog):
    schedule = WeightSchedule(
        changes=tuple(
            Change(at_sample=at, weights=weights)
            for at, weights in ((0, {"s0": 9, "s1": 1}), (800, {"s0": 1, "s1": 9}))
        )
    )
    FastMixBlendedDataset(
        numbered([400, 2000]),
        [1, 1],
        1000,
        config_of(),
        mixture=LiveMixture.from_schedule(schedule, block_size=10),
        options=BlendOptions(weighting="sampling", block_size=10, max_epochs={"s0": 1, "s1": 4}),
    )
    # 720 of the first phase and 20 of the second; s1, of which the second asks for 0.9, has room.
    assert "s0 1.85 (cap 1); the excess of 340 samples" in caplog.text
    assert "s1" not in caplog.text.partition("max_epochs")[2]


def test_max_epochs_for_all_sources_must_leave_enough(caplog):
    with pytest.raises(DataError, match=r"after 100 samples every source .* reached its cap"):
        ours_of([30, 20], [1, 1], 101, max_epochs=2, weighting="loss")
    _, exact = ours_of([30, 20], [1, 1], 100, max_epochs=2)
    assert {exact[i]["number"] for i in range(100)} == set(range(30))
    # Weights that move may still save a run, so only the draw that cannot be is refused.
    mixture, moving = ours_of([30, 20, 90], [1, 1, 0], 150, max_epochs=2)
    assert "or give other sources a weight" in caplog.text
    with pytest.raises(DataError, match="every source with a weight has reached its cap"):
        moving[120]
    mixture.update([0, 0, 1], at_sample=130)
    with pytest.raises(DataError, match="reached its cap"):
        moving[140]


def test_a_source_without_a_sample_is_refused_by_name():
    with pytest.raises(DataError, match=r"source s1 \(source1-0\): no sample of 4 tokens"):
        ours_of([4, 0], [1, 1], 10)


def test_multimodal_samples_pass_whole():
    config = MultimodalDatasetConfig(
        random_seed=3,
        sequence_length=16,
        split="100,0,0",
        tokenizer=TOKENIZER,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        image_h=4,
        image_w=6,
    )
    datasets = [
        MockMultimodalDataset(
            MockGPTLowLevelDataset(TOKENIZER), path, np.arange(50), None, Split.train, config
        )
        for path in ("one", "two")
    ]
    mixture = LiveMixture({"one": 1, "two": 3}, block_size=10)
    theirs, ours = (
        BlendedDataset(datasets, [1.0, 3.0], 20, config),
        FastMixBlendedDataset(datasets, [1.0, 3.0], 20, config, mixture=mixture, options=SAMPLING),
    )
    assert list(ours[0]) == list(theirs[0])
    assert ours[0]["image"].shape == (3, 4, 6)
    assert sum(int(ours[i]["dataset_id"]) for i in range(20)) == 15


class Pieces:
    """A WordPiece vocabulary, as much of it as masking asks for."""

    cls, sep, mask, pad, eod = 1, 2, 3, 0, 2
    vocab_size = 50
    unique_identifiers = "Pieces"

    def __init__(self):
        self.inv_vocab = {n: f"##{n}" if n % 5 == 0 else str(n) for n in range(50)}


@pytest.fixture
def process_group(tmp_path):
    """Masked datasets ask for the rank when they write their index."""
    if torch.distributed.is_initialized():  # by a test before
        yield
        return
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_masked_datasets_go_through_the_builder(tmp_path, process_group):
    generator = np.random.default_rng(0)
    for name in SOURCES:
        writer = IndexedDatasetBuilder(f"{tmp_path / name}.bin", dtype=DType.optimal_dtype(50))
        for _ in range(30):
            sentences = [generator.integers(4, 50, 9) for _ in range(4)]
            writer.add_document(
                torch.tensor(np.concatenate(sentences)), [len(s) for s in sentences]
            )
        writer.finalize(f"{tmp_path / name}.idx")
    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=5,
        sequence_length=32,
        blend=([str(tmp_path / name) for name in SOURCES], [0.2, 0.3, 0.5]),
        split="100,0,0",
        path_to_cache=str(tmp_path / "cache"),
        tokenizer=Pieces(),
        masking_probability=0.15,
        short_sequence_probability=0.1,
        masking_max_ngram=3,
        masking_do_full_word=True,
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False,
        classification_head=True,
    )

    def build():
        return BlendedMegatronDatasetBuilder(
            BERTMaskedWordPieceDataset, [60, 0, 0], lambda: True, config
        ).build()[0]

    theirs = build()
    mixture = LiveMixture(dict.fromkeys(SOURCES, 1), block_size=6)
    with blend.install(mixture, weighting="sampling", num_samples=600):
        ours = build()
    assert type(ours) is FastMixBlendedDataset
    assert [len(d) for d in ours.datasets] == [len(d) for d in theirs.datasets]
    assert {key: np.asarray(value).dtype for key, value in ours[0].items()} == {
        key: np.asarray(value).dtype for key, value in theirs[0].items()
    }
    assert Counter(int(ours[i]["dataset_id"]) for i in range(600)) == {0: 200, 1: 200, 2: 200}
    with blend.install(mixture, fold_loss_mask=True):
        folded = build()
    with pytest.raises(DataError, match="a loss_mask of int64, which can hold no weight"):
        folded[0]
