"""Losses by source from numbered samples, against the sources that the samples carry."""

from functools import partial

import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_fastmix import blend
from megatron_fastmix.blend import LiveMixture
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.megatron.source_log import local_values, log_line, rows_of, scalars
from megatron_fastmix.megatron.source_losses import Layout, SourceLosses
from tests.conftest import SEQ_LENGTH, SOURCES


@pytest.fixture(params=["sampling", "loss"])
def train(request, corpora):
    paths = [str(corpora / name) for name in SOURCES]
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=(paths, [1.0, 1.0, 1.0]),
        split="100,0,0",
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    mixture = LiveMixture(dict(zip(SOURCES, (0.5, 0.3, 0.2), strict=True)), block_size=12)
    folds = request.param == "loss"
    with blend.install(mixture, weighting=request.param, fold_loss_mask=folds):
        yield BlendedMegatronDatasetBuilder(GPTDataset, [96, 0, 0], lambda: True, config).build()[0]


def mean_loss(mask, output):
    return (output * mask).sum() / mask.sum()


def passes(losses, train, first, rank, size, output_of):
    """The forward passes of one global batch of 12 on one rank, in micro-batches of 2."""
    losses.begin(first)
    seen = []
    for micro in range(12 // (2 * size)):
        numbers = losses.layout.samples(first, micro)
        samples = [train[i] for i in numbers]
        output = torch.stack([output_of(i) for i in numbers]).requires_grad_()
        mask = torch.stack([sample["loss_mask"] for sample in samples])
        result = losses.watch(partial(mean_loss, mask))(output)
        assert result.requires_grad
        assert torch.equal(result, mean_loss(mask, output))
        seen += [
            (int(s["dataset_id"]), output_of(i)) for s, i in zip(samples, numbers, strict=True)
        ]
    return seen


def output_of(number):
    return torch.linspace(1, 2, SEQ_LENGTH) + number


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sums_are_those_of_the_samples_own_sources(train, size):
    expected = torch.zeros(2, 3, dtype=torch.float64)
    found = torch.zeros(2, 3, dtype=torch.float64)
    numbers = []
    for rank in range(size):
        layout = Layout(micro_batch_size=2, rank=rank, size=size)
        losses = SourceLosses(train, layout)
        for first in (24, 36):
            # Megatron may repeat a step's passes; only the last ones count.
            passes(losses, train, first, rank, size, lambda number: output_of(-number))
            for source, output in passes(losses, train, first, rank, size, output_of):
                expected[0, source] += output.double().sum()
                expected[1, source] += SEQ_LENGTH
            losses.end()
            numbers += [i for m in range(12 // (2 * size)) for i in layout.samples(first, m)]
        found += losses.take()
        assert losses.take() is None
        assert losses.problem is None
    assert sorted(numbers) == list(range(24, 48))
    assert torch.allclose(found, expected, rtol=1e-6)


def test_a_loss_function_without_a_mask_is_named_and_left_alone(train):
    losses = SourceLosses(train, Layout(micro_batch_size=2, rank=0, size=1))
    losses.begin(0)
    output = torch.ones(2, SEQ_LENGTH)
    assert losses.watch(lambda out: out.sum())(output) == 2 * SEQ_LENGTH
    losses.end()
    assert "not bound to a loss_mask" in losses.problem
    assert losses.take() is None


def test_a_failed_pass_leaves_no_sum(train):
    losses = SourceLosses(train, Layout(micro_batch_size=2, rank=0, size=1))
    losses.begin(0)
    watched = losses.watch(partial(mean_loss, torch.ones(2, SEQ_LENGTH)))
    watched(torch.ones(2, SEQ_LENGTH))
    losses.begin(0)
    losses.end()
    assert losses.take() is None


def test_rows_are_losses_tokens_and_epochs():
    sums = torch.tensor([[6.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    values = local_values(sums, [10, 0], [40, 8], 2, "cpu") + local_values(
        sums, None, None, 2, "cpu"
    )
    rows = rows_of(["web", "code"], values, [0.75, 0.25], 16)
    assert (rows[0].loss, rows[0].tokens, rows[0].epochs) == (1.5, 160, 0.25)
    assert (rows[1].loss, rows[1].tokens, rows[1].epochs) == (None, 0, 0.0)
    line = log_line(20, rows)
    assert "web: loss 1.500000E+00, weight 0.7500, tokens 160, epochs 0.250" in line
    assert "code: loss none" in line
    assert scalars(rows) == {
        "fastmix loss/web": 1.5,
        "fastmix weight/web": 0.75,
        "fastmix tokens/web": 160.0,
        "fastmix epochs/web": 0.25,
        "fastmix weight/code": 0.25,
        "fastmix tokens/code": 0.0,
        "fastmix epochs/code": 0.0,
    }


def test_a_line_of_many_sources_stays_a_line():
    names = [f"s{k}" for k in range(100)]
    values = local_values(None, list(range(100)), [10] * 100, 100, "cpu")
    line = log_line(1, rows_of(names, values, [0.01] * 100, 4))
    assert " s99: " in line
    assert " s1: " not in line
    assert "and 70 more" in line
