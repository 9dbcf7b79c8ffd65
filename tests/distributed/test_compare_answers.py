"""Comparing mixtures for fine-tuning: rows by answer tokens, exact match, a trained start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.packing import collate_rows
from megatron_fastmix.cli import compare_mixtures as command
from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.comparison.candidates import Candidate
from megatron_fastmix.lab.comparison.config import Setting, load_compare_config
from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned
from megatron_fastmix.lab.comparison.row_data import RowData
from megatron_fastmix.lab.comparison.row_evaluation import evaluate
from megatron_fastmix.lab.comparison.rows import Row, RowFile, Task
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.proxy.megatron_gpt import build_proxy, initialize_world_of_one, token_losses
from tests.conftest import SOURCES, synthetic_rows, write_rows
from tests.distributed.searches import load, run_search

SMALL = ["--num-layers=1", "--hidden-size=32", "--num-attention-heads=2"]


@pytest.fixture
def learned(search_values: dict, answer_corpora: Path, tmp_path: Path) -> Path:
    """The run folder of a short search over answer-only sources, the first of two datasets."""
    sources: list[dict[str, Any]]
    sources = [{"name": name, "path": str(answer_corpora / name)} for name in SOURCES]
    write_rows(tmp_path / "more", synthetic_rows("forward", 50, 12), 259)
    sources[0]["path"] = [sources[0]["path"], str(tmp_path / "more")]
    target = {"name": "target", "path": str(answer_corpora / "target")}
    values = search_values | {"sources": sources, "targets": [target]}
    config = load(values, run_dir=tmp_path / "learned", **{"training.train_iters": 2})
    run_ranks(1, run_search, config)
    return Path(config.run_dir)


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    write_rows(tmp_path / "test", synthetic_rows("forward", 30, 11), 259)
    return tmp_path / "test"


def setting_of(learned: Path, test_set: Path, *overrides: str) -> Setting:
    config = load_compare_config(None, [*SMALL, *overrides], [f"test={test_set}"])
    return make_setting(config, read_learned([str(learned)])["learned"], str(learned))


def answer_tokens_by_source(setting: Setting, weights: dict[str, str], cache: Path) -> list[float]:
    initialize_world_of_one()
    candidate = Candidate(name="given", kind="learned", weights=weights)
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    task = Task(candidate=candidate, seed=1)
    data = RowData(setting, task, tokenizer, cache, torch.device("cpu"))
    counts = np.zeros(len(weights))
    for i in range(len(data._blend)):
        sample = data._blend[i]
        counts[int(sample["dataset_id"])] += float(sample["loss_mask"].sum())
    steps = [data.step(step) for step in range(setting.training.train_iters)]
    assert sum(float(b.loss_mask.sum()) for step in steps for b in step) == counts.sum()
    return (counts / counts.sum()).tolist()


def test_rows_bring_tokens_in_the_loss_by_weight(
    learned: Path, test_set: Path, tmp_path: Path
) -> None:
    setting = setting_of(learned, test_set, "--train-iters=400")
    weights = {"forward": "0.5", "backward": "0.2", "noise": "0.3"}
    (shares,) = run_ranks(1, answer_tokens_by_source, setting, weights, tmp_path)
    # A source of 300 rows is read several times, by rows of 3 to 24 tokens in the loss.
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.01)


def exact_matches() -> tuple[float | None, float, list[float], list[float]]:
    """Of a model that has learned some of the answers: what `evaluate` finds, and what greedy
    decoding gives."""
    initialize_world_of_one()
    torch.manual_seed(0)
    small = ProxyConfig(num_layers=1, hidden_size=32, num_attention_heads=2)
    model = build_proxy(small, vocab_size=259, seq_length=32, seed=1)
    rows = synthetic_rows("forward", 6, 1) + synthetic_rows("noise", 6, 2)
    samples = []
    for prompt, answer in rows:
        tokens = torch.tensor(prompt + answer)
        mask = torch.tensor([0.0] * (len(prompt) - 1) + [1.0] * len(answer))
        samples.append({"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": mask})
    batches = [
        Batch.of_sources(
            np.zeros(4, dtype=int), **collate_rows(samples[i : i + 4], 32, packing=False)
        )
        for i in (0, 4, 8)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        for batch in batches[:2]:
            losses = token_losses(model, batch.tokens, batch.labels) * batch.loss_mask
            (losses.sum() / batch.loss_mask.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = evaluate(model, batches)
    decoded, sums, tokens_in_loss = 0, [], 0
    with torch.no_grad():
        for prompt, answer in rows:
            given = list(prompt)
            for _ in answer:
                tokens = torch.tensor([given])
                positions = torch.arange(len(given))[None]
                given.append(int(model(tokens, positions, None)[0, -1].argmax()))
            decoded += given == prompt + answer
            tokens = torch.tensor([prompt + answer])
            losses = token_losses(model, tokens[:, :-1], tokens[:, 1:])[0]
            sums.append(float(losses[len(prompt) - 1 :].sum()))
            tokens_in_loss += len(answer)
    mean = tokens_in_loss / len(rows)
    return found.exact_match, decoded / len(rows), found.losses, [value / mean for value in sums]


def test_exact_match_is_what_greedy_decoding_gives() -> None:
    ((found, decoded, losses, expected),) = run_ranks(1, exact_matches)
    assert 0 < decoded < 1
    assert found == decoded
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def compare(*arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args, rest = parser.parse_known_args([str(a) for a in arguments])
    args.overrides = [*SMALL, *rest]
    return command.run(args)


@pytest.mark.slow
def test_fine_tuning_under_several_mixtures(
    search_values: dict, learned: Path, test_set: Path, tmp_path: Path, capsys: Any
) -> None:
    pretrained = tmp_path / "pretrained"
    pretraining = {"training.train_iters": 12, "output.save_interval": 12}
    run_ranks(1, run_search, load(search_values, run_dir=pretrained, **pretraining))
    rows = tmp_path / "rows"
    flags = ("--mixture", learned, "--output", rows, "--test", f"answers={test_set}")
    start = (f"--model.checkpoint={pretrained}", "--make-vocab-size-divisible-by=256")
    steps = ("--train-iters=40", "--micro-batch-size=4", "--global-batch-size=8", "--lr=1e-2")
    only = ("--only", "uniform,single:forward,single:noise", "--num-seeds=1")
    assert compare(*flags, *start, *steps, "--lr-warmup-iters=2", *only) == 0
    printed = capsys.readouterr().out
    found = {row.mixture: row for row in rows_in(rows)}
    assert found["single:forward"].loss < found["uniform"].loss < found["single:noise"].loss
    assert 0 <= found["single:noise"].exact_match["answers"] <= 1
    assert " exact" in printed
    # Rows of a source that is long bring more tokens in as many steps.
    least, most = sorted({row.tokens for row in found.values()})[:: len(found) - 1]
    assert f"after {least:,} to {most:,} tokens each" in printed

    # All seeds start from the checkpoint: what hardly trains hardly differs.
    still = ("--train-iters=1", "--lr=1e-12", "--lr-warmup-iters=0", "--min-lr=0")
    arguments = (*flags[:2], "--output", tmp_path / "still", *flags[4:], *start, *steps, *still)
    assert compare(*arguments, "--only", "uniform", "--num-seeds=2") == 0
    first, second = (row.loss for row in rows_in(tmp_path / "still"))
    assert first == pytest.approx(second, abs=1e-6)

    with pytest.raises(ConfigError, match=r"proxy\.checkpoint.*hidden_size"):
        compare(*flags, *start, "--hidden-size=64")


def rows_in(folder: Path) -> list[Row]:
    return list(RowFile(folder / "rows.jsonl").read().trainings.values())
