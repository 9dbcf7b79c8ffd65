"""A mixture that moves on gloo ranks: agreement, one global order, resume, and real training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_fastmix import blend
from megatron_fastmix.blend import LiveMixture
from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, RankDivergenceError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.proxy.megatron_gpt import build_proxy, initialize_parallel_state, token_losses
from tests.conftest import SEQ_LENGTH, SOURCES

START = {"forward": 0.5, "backward": 0.25, "noise": 0.25}
MOVED = {"forward": 0.0, "backward": 0.25, "noise": 0.75}
BATCH = 8


def build(corpora: Path, cache: Path, samples: int) -> Any:
    """The train blend of Megatron's builder, whichever class that has now."""
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=([str(corpora / name) for name in SOURCES], list(START.values())),
        split="100,0,0",
        path_to_cache=str(cache),
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[
        0
    ]


def rank_batches(first: int, last: int) -> list[list[int]]:
    """This rank's part of the global batches of the samples `first` to `last`, as Megatron's."""
    rank, size = dist.get_rank(), dist.get_world_size()
    part = BATCH // size
    return [
        list(range(at + rank * part, at + (rank + 1) * part)) for at in range(first, last, BATCH)
    ]


def loader_of(dataset: Any, first: int, last: int, workers: int) -> Any:
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=rank_batches(first, last), num_workers=workers
    )


def trained_counts(corpora: Path, cache: Path, patched: bool) -> tuple[str, list[int], float]:
    initialize_parallel_state()
    if patched:
        blend.install(LiveMixture(START, block_size=BATCH), weighting="sampling")
    dataset = build(corpora, cache, 10 * BATCH)
    blend.uninstall()
    proxy = ProxyConfig(num_layers=1, hidden_size=32, num_attention_heads=2)
    model = build_proxy(
        proxy,
        vocab_size=dataset.config.tokenizer.vocab_size,
        seq_length=SEQ_LENGTH,
        seed=1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    counts = torch.zeros(len(SOURCES), dtype=torch.int64)
    for batch in loader_of(dataset, 0, 10 * BATCH, workers=1):
        counts += torch.bincount(batch["dataset_id"].long(), minlength=len(SOURCES))
        losses = token_losses(model, batch["tokens"], batch["labels"])
        mask = batch["loss_mask"]
        loss = (losses * mask).sum() / mask.sum()
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
    dist.all_reduce(counts)
    return type(dataset).__name__, counts.tolist(), float(loss)


def test_training_sees_the_source_counts_of_plain_megatron(corpora, tmp_path):
    plain = run_ranks(2, trained_counts, corpora, tmp_path, False)
    ours = run_ranks(2, trained_counts, corpora, tmp_path, True)
    assert {name for name, _, _ in plain} == {BlendedDataset.__name__}
    assert {name for name, _, _ in ours} == {"FastMixBlendedDataset"}
    assert [counts for _, counts, _ in ours] == [counts for _, counts, _ in plain]
    assert plain[0][1] == [40, 20, 20]
    assert all(0 < loss < 6 for *_, loss in plain + ours)


def updates() -> list[Any]:
    rank = dist.get_rank()
    mixture = LiveMixture(START, block_size=BATCH)
    outcomes: list[Any] = [mixture.update(MOVED, at_sample=13)]
    before = mixture.history
    attempts: list[tuple[Any, int | None]] = [
        (MOVED if rank else START, None),  # other weights
        (START, 24 + 8 * rank),  # another sample
        ({"forward": 1.0} if rank else START, None),  # an error on one rank alone
        ({"forward": 1.0}, None),  # the same error on all
    ]
    for weights, at in attempts:
        try:
            mixture.update(weights, at)
            outcomes.append("accepted")
        except (ConfigError, RankDivergenceError) as error:
            outcomes.append((type(error).__name__, str(error)))
    assert [at for at, _ in mixture.history] == [at for at, _ in before]
    # A further update works: nobody was left waiting in a collective.
    outcomes.append(mixture.update(START))
    mixture.note_drawn(100 * rank)
    outcomes.append(mixture.update(MOVED))
    try:
        mixture.update(START, at_sample=64)
    except ConfigError as error:
        outcomes.append(str(error))
    return outcomes


def test_ranks_update_together_or_not_at_all():
    first, second = run_ranks(2, updates)
    assert first[0] == second[0] == 16
    for outcome in (first, second):
        assert outcome[1][0] == outcome[2][0] == "RankDivergenceError"
        assert "update's values of forward differ over 2 ranks" in outcome[1][1]
        assert "at_sample differ" in outcome[2][1]
        assert outcome[4][0] == "ConfigError"
        assert outcome[5:7] == [16, 104]  # past the furthest draw of any rank, 100
        assert "the blocks before 104 are drawn from already" in outcome[7]
    assert first[3][0] == "RankDivergenceError"
    assert second[3] == (
        "ConfigError",
        "weights: found forward; expected one for each of forward, backward, noise",
    )


class DrawnMeanwhile(LiveMixture):
    """A worker of rank 1 draws past the sample just before the change is there to see."""

    def _append(self, at: int, shares: Any) -> None:
        if dist.get_rank() == 1:
            self.note_drawn(at + BATCH)
        super()._append(at, shares)


def late_update() -> str:
    with pytest.raises(ConfigError) as error:
        DrawnMeanwhile(START, block_size=BATCH).update(MOVED)
    return str(error.value)


def test_a_draw_in_the_moment_of_an_update_is_an_error_on_every_rank():
    for message in run_ranks(2, late_update):
        assert message.startswith("a DataLoader worker drew up to sample 16 while the weights")


def drawn_samples(
    corpora: Path, cache: Path, workers: int, stop: int | None
) -> list[tuple[int, int, int]]:
    """(index, source, checksum) of this rank's samples; the weights change at samples 64 and 128.

    With `stop` the run ends there, and another goes on from its state.
    """
    mixture = LiveMixture(START, block_size=BATCH)
    end = 24 * BATCH

    def read(first: int, last: int) -> list[tuple[int, int, int]]:
        with blend.install(mixture, weighting="sampling"):
            dataset = build(corpora, cache, end)
        samples = []
        batches = rank_batches(first, last)
        for step, batch in enumerate(loader_of(dataset, first, last, workers)):
            at = batches[step][0] // BATCH * BATCH
            # Workers have fetched up to 4 batches ahead.
            if at == 16:
                mixture.update(MOVED, at_sample=64)
            if at == 80:
                mixture.update(START, at_sample=128)
            hashes = (batch["tokens"] * torch.arange(1, SEQ_LENGTH + 1)).sum(dim=1)
            samples += zip(
                batches[step], batch["dataset_id"].tolist(), hashes.tolist(), strict=True
            )
        return samples

    if stop is None:
        return read(0, end)
    samples = read(0, stop)
    state = mixture.state_dict()
    mixture = LiveMixture(MOVED, block_size=BATCH)
    mixture.load_state_dict(state)
    return samples + read(stop, end)


@pytest.fixture(scope="module")
def reference(corpora, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    [samples] = run_ranks(1, drawn_samples, corpora, cache, 0, None)
    return cache, samples


def test_the_weights_in_force_decide_the_sources(reference):
    _, samples = reference
    sources = np.array([source for _, source, _ in samples]).reshape(-1, BATCH)
    counts = np.array([np.bincount(row, minlength=3) for row in sources])
    assert counts[:8].tolist() == [[4, 2, 2]] * 8
    assert counts[8:16].tolist() == [[0, 2, 6]] * 8
    assert counts[16:].tolist() == [[4, 2, 2]] * 8


@pytest.mark.parametrize(
    ("ranks", "workers", "stop"),
    [(2, 0, None), (4, 0, 80), (2, 1, None), (1, 2, 80)],
)
def test_ranks_workers_and_a_resume_change_nothing(corpora, reference, ranks, workers, stop):
    cache, expected = reference
    parts = run_ranks(ranks, drawn_samples, corpora, cache, workers, stop)
    assert sorted(sample for part in parts for sample in part) == expected
