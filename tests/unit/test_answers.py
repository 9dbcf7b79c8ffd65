"""Answer-only data: what counts in the loss, and packing that changes no sample's loss."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.packing import collate_rows, place
from megatron_fastmix.cli.main import main
from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.corpus.indexed.answer_rows import (
    check_mask,
    count_answer_rows,
    is_answer_only,
    read_answer_rows,
)
from megatron_fastmix.errors import DataError
from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.conftest import write_dataset, write_rows

ROWS = [([1, 2, 3], [4, 5]), ([1], [2, 3, 4, 5, 6]), ([1] * 9, [7]), ([], [8, 9])]


def test_rows_count_the_labels_of_answers_within_the_sequence_length(tmp_path):
    write_rows(tmp_path / "rows", ROWS, 300)
    assert is_answer_only(tmp_path / "rows")
    rows = read_answer_rows(tmp_path / "rows", seq_length=4)
    # A first token is no label, and only the first 5 tokens of a row are read.
    assert rows.answer_tokens.tolist() == [2, 4, 0, 1]
    assert rows.whole.tolist() == [2, 5, 1, 1]
    assert rows.kept.tolist() == [0, 1, 3]
    counts = count_answer_rows(tmp_path / "rows", seq_length=4)
    assert counts.mean_answer_tokens == pytest.approx(7 / 3)
    assert counts.cut_share == 0.5


def test_an_empty_row_has_nothing_to_learn(tmp_path):
    write_rows(tmp_path / "rows", [([], []), ([1], [2]), ([], [])], 300)
    rows = read_answer_rows(tmp_path / "rows", seq_length=4)
    assert rows.answer_tokens.tolist() == rows.whole.tolist() == rows.tokens.tolist() == [0, 1, 0]
    assert rows.kept.tolist() == [1]


def test_rows_without_an_answer_in_reach_are_refused(tmp_path):
    write_rows(tmp_path / "rows", [([1] * 9, [7])] * 3, 300)
    with pytest.raises(DataError, match="no row has an answer within 4 tokens"):
        read_answer_rows(tmp_path / "rows", seq_length=4)


def test_a_mask_that_is_lost_is_no_text(tmp_path):
    rows = [([1, 2], [3]), ([4], [5, 6])]
    write_dataset(tmp_path / "text", [[1, 2]], 9)
    assert not check_mask(tmp_path / "text")
    write_rows(tmp_path / "rows", rows, 9)
    assert check_mask(tmp_path / "rows")
    for end in (".idx", ".bin"):
        write_rows(tmp_path / "rows", rows, 9)
        (tmp_path / f"rows_loss_mask{end}").unlink()
        with pytest.raises(DataError, match=f"rows_loss_mask{end}: is missing"):
            check_mask(tmp_path / "rows")
    write_dataset(tmp_path / "rows_loss_mask", [p + a for p, a in rows], 9)
    with pytest.raises(DataError, match="rows_loss_mask: is of uint16, a loss mask of uint8"):
        check_mask(tmp_path / "rows")


def test_a_mask_that_a_manifest_counts_is_not_forgotten(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    call = ["preprocess", "--input", str(tmp_path / "in.jsonl"), "--workers", "1"]
    call += ["--record-type", "question_answer", "--tokenizer-type", "ByteLevelTokenizer"]
    assert main([*call, "--output-prefix", str(tmp_path / "x")]) == 0
    prefix = str(tmp_path / "x_text_document")
    assert main(["inspect", prefix]) == 0
    for end in (".idx", ".bin"):
        Path(f"{prefix}_loss_mask{end}").unlink()
    assert main(["inspect", prefix]) == 2


def test_a_mask_of_other_rows_is_refused(tmp_path):
    write_rows(tmp_path / "rows", ROWS, 300)
    write_dataset(tmp_path / "rows_loss_mask", [[1, 1]], 2, dtype="uint8")
    with pytest.raises(DataError, match="has 1 sequences of 2 entries for 4 of 23 tokens"):
        read_answer_rows(tmp_path / "rows", seq_length=4)
    others = [[1] * length for length in (20, 1, 1, 1)]
    write_dataset(tmp_path / "rows_loss_mask", others, 2, dtype="uint8")
    with pytest.raises(DataError, match="other lengths"):
        read_answer_rows(tmp_path / "rows", seq_length=4)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_every_sample_lies_in_one_row_that_holds_it(lengths):
    rows = place(lengths, 20, packing=True)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # First fit: no two rows could be one.
    loads = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > 20


def test_packing_changes_no_samples_loss():
    # In a process of its own: ranks that other tests fork need a parent without process groups.
    run_ranks(1, _packing_changes_no_samples_loss)


def _packing_changes_no_samples_loss():
    from megatron_fastmix.proxy.megatron_gpt import (
        batch_losses,
        build_proxy,
        initialize_parallel_state,
    )

    initialize_parallel_state()
    small = ProxyConfig(num_layers=2, hidden_size=32, num_attention_heads=2)
    proxy = build_proxy(small, vocab_size=300, seq_length=64, seed=1)
    generator = torch.Generator().manual_seed(3)
    samples = []
    for length in (5, 17, 3, 30, 8, 1, 12):
        tokens = torch.randint(0, 300, (length + 1,), generator=generator)
        mask = (torch.arange(length) >= length // 2).float()
        samples.append({"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": mask})
    divisors = torch.full((len(samples),), 4.0, dtype=torch.float64)

    def losses(packing):
        rows = collate_rows(samples, 64, packing)
        batch = Batch.of_sources(
            np.zeros(len(samples), dtype=int), tokens_per_sample=divisors, **rows
        )
        return rows["tokens"].shape[0], batch_losses(proxy, batch)

    (packed_rows, packed), (padded_rows, padded) = losses(True), losses(False)
    assert (packed_rows, padded_rows) == (2, 7)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)
    for sample, loss in zip(samples, packed, strict=True):
        tensors = {k: sample[k][None] for k in ("tokens", "labels", "loss_mask")}
        alone = batch_losses(proxy, Batch.of_sources(np.zeros(1, dtype=int), **tensors))
        assert float(loss) == pytest.approx(float(alone * sample["loss_mask"].sum() / 4), rel=1e-5)
    # Without the mask, samples of a row would see each other.
    rows = collate_rows(samples, 64, True)
    joined = Batch.of_sources(np.zeros(7, dtype=int), tokens_per_sample=divisors, **rows)
    blind = dataclasses.replace(joined, segment=torch.zeros_like(rows["segment"]), blocks=None)
    assert float(batch_losses(proxy, blind)[0]) != pytest.approx(float(packed.sum()), rel=1e-5)
