"""Small real datasets for every test, made once per session."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.dataset_paths import loss_mask_prefix

# A machine that is busy elsewhere for a moment is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

SEQ_LENGTH = 32
SOURCES = ("forward", "backward", "noise")


def write_dataset(
    prefix: Path, documents: list[list[int]], vocab_size: int, dtype: str | None = None
) -> None:
    """Writes an indexed dataset with Megatron-core's own builder."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    best = DType.optimal_dtype(vocab_size)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type if dtype else best)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")


def synthetic_documents(kind: str, count: int, seed: int) -> list[list[int]]:
    """Documents of bytes: counting up, counting down, or without any structure."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        length = int(generator.integers(40, 90))
        start, stride = generator.integers(0, 64), generator.integers(1, 3)
        steps = np.arange(length) * stride
        tokens = {
            "forward": (start + steps) % 64,
            "backward": (start - steps) % 64,
            "noise": generator.integers(0, 256, length),
        }[kind]
        documents.append(tokens.tolist())
    return documents


def write_rows(prefix: Path, rows: list[tuple[list[int], list[int]]], vocab_size: int) -> None:
    """Writes an answer-only dataset of (prompt, answer) rows and its loss mask."""
    write_dataset(prefix, [prompt + answer for prompt, answer in rows], vocab_size)
    masks = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows]
    write_dataset(Path(loss_mask_prefix(prefix)), masks, 2, dtype="uint8")


def synthetic_rows(kind: str, count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """A prompt of one number and an answer that counts on from it, of kinds of lengths."""
    generator = np.random.default_rng(seed)
    longest = {"forward": 12, "backward": 24, "noise": 6}[kind]
    rows = []
    for document in synthetic_documents(kind, count, seed):
        answer = int(generator.integers(2, longest))
        rows.append((document[:3], document[3 : 3 + answer]))
    return rows


@pytest.fixture(scope="session")
def answer_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `corpora`, of answer-only rows."""
    folder = tmp_path_factory.mktemp("answers")
    vocab_size = load_tokenizer("ByteLevelTokenizer").vocab_size
    for number, kind in enumerate(SOURCES):
        write_rows(folder / kind, synthetic_rows(kind, 300, number), vocab_size)
    write_rows(folder / "target", synthetic_rows("forward", 100, 99), vocab_size)
    return folder


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three sources and a held-out target that resembles `forward` alone."""
    folder = tmp_path_factory.mktemp("corpora")
    vocab_size = load_tokenizer("ByteLevelTokenizer").vocab_size
    for number, kind in enumerate(SOURCES):
        write_dataset(folder / kind, synthetic_documents(kind, 120, number), vocab_size)
    write_dataset(folder / "forward_copy", synthetic_documents("forward", 120, 0), vocab_size)
    write_dataset(folder / "noise_too", synthetic_documents("noise", 120, 97), vocab_size)
    write_dataset(folder / "target", synthetic_documents("forward", 60, 99), vocab_size)
    write_dataset(folder / "target_backward", synthetic_documents("backward", 60, 98), vocab_size)
    return folder


def small_search(corpora: Path, folder: Path) -> dict:
    """The plain values of a small configuration over `corpora`, with its files in `folder`."""
    return {
        "run_dir": str(folder / "run"),
        "sources": [{"name": name, "path": str(corpora / name)} for name in SOURCES],
        "targets": [{"name": "target", "path": str(corpora / "target")}],
        "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
        "data": {"seq_length": SEQ_LENGTH, "data_cache_path": str(folder / "cache")},
        "proxy": {
            "num_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 2,
            # As many rows of the embedding at tensor-parallel size 2 as at 1.
            "make_vocab_size_divisible_by": 256,
        },
        "training": {
            "train_iters": 6,
            "micro_batch_size": 3,
            "global_batch_size": 12,
            "lr": 3e-3,
            "min_lr": 3e-4,
            "lr_warmup_iters": 2,
        },
        "mixture": {
            "inner_steps": 2,
            "weighting": "loss",
            "optimizer": "adam",
            "lr": 0.1,
            "adam_beta2": 0.99,
        },
        "hypergradient": {"target_samples": 10, "probe_samples_per_source": 5},
        "output": {"save_interval": 3},
    }


@pytest.fixture
def search_values(corpora: Path, tmp_path: Path) -> dict:
    """The plain values of a small configuration; tests change them and call `load`."""
    return small_search(corpora, tmp_path)


@pytest.fixture
def config_file(search_values: dict, tmp_path: Path) -> Path:
    """`search_values` as a file."""
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(search_values))
    return path
