"""What `test_recorded_values` records: searches, draws and corpora under settings written out."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_fastmix import blend
from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.conftest import (
    SOURCES,
    synthetic_documents,
    synthetic_rows,
    write_dataset,
    write_rows,
)
from tests.distributed.searches import load, products_of, run_search

SETTINGS: dict[str, Any] = {
    "seed": 1234,
    "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
    "data": {"seq_length": 32, "packing": True, "max_cut_share": 0.05},
    "proxy": {
        "kind": "megatron",
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "ffn_hidden_size": 96,
        "make_vocab_size_divisible_by": 128,
        "untie_embeddings_and_output_weights": False,
        "init_method_std": 0.02,
    },
    "training": {
        "train_iters": 8,
        "micro_batch_size": 3,
        "global_batch_size": 12,
        "lr": 3e-3,
        "min_lr": 3e-4,
        "lr_warmup_iters": 2,
        "lr_decay_style": "cosine",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_eps": 1e-8,
        "weight_decay": 0.1,
        "clip_grad": 1.0,
    },
    "objective": {
        "target_aggregation": "mean",
        "target_lr": 0.1,
        "train_loss_weight": 0.1,
        "entropy_weight": 1e-6,
    },
    "mixture": {
        "initial_weights": [0.5, 0.3, 0.2],
        "inner_steps": 2,
        "weighting": "loss",
        "optimizer": "adam",
        "lr": 0.1,
        "min_lr": 0.0,
        "lr_warmup_steps": 0,
        "lr_decay_style": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.99,
        "adam_eps": 1e-12,
        "averaging_fraction": 0.5,
    },
    "hypergradient": {
        "estimator": "finite_difference",
        "target_samples": 10,
        "probe_samples_per_source": 5,
        "probe_allocation": "even",
        "relative_step": 1e-4,
        "per_target": False,
        "preconditioner": "none",
    },
    "engine": {
        "dtype": "fp32",
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    },
    "output": {"log_interval": 10, "save_interval": 4, "keep_checkpoints": 2},
}

SEARCHES: dict[str, tuple[str, int]] = {
    "text, ZeRO 2": ("text", 2),
    "text, ZeRO 3": ("text", 3),
    "answers, ZeRO 2": ("answers", 2),
}
"""Kind of data and ZeRO stage."""

SHARES = {"forward": 0.6, "backward": 0.3, "noise": 0.1}
CHANGED = {"forward": 0.2, "backward": 0.1, "noise": 0.7}
BLENDS: dict[str, tuple[int, dict[str, Any]]] = {
    "shuffled, seed 5": (5, {"order": "shuffled", "weighting": "loss"}),
    "shuffled, seed 1234": (1234, {"order": "shuffled", "weighting": "loss"}),
    "spread evenly": (5, {"order": "spread", "weighting": "loss"}),
    "spread by weights, seed 5": (5, {"order": "spread", "weighting": "sampling"}),
    "spread by weights, seed 1234": (1234, {"order": "spread", "weighting": "sampling"}),
    "spread, capped": (
        5,
        {"order": "spread", "weighting": "sampling", "max_epochs": {"noise": 0.2}},
    ),
}
"""Seed and options of a blend whose weights change from SHARES to CHANGED at draw 96."""


def environment() -> dict[str, str]:
    """What the last bits of a float depend on: the versions and kernels of one machine."""
    models = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": models[0] if models else platform.processor(),
    }


def write_corpora(folder: Path, kind: str) -> None:
    """Three sources and a target."""
    vocab_size = load_tokenizer("ByteLevelTokenizer").vocab_size
    for number, name in enumerate((*SOURCES, "target")):
        content = "forward" if name == "target" else name
        if kind == "text":
            write_dataset(folder / name, synthetic_documents(content, 100, number), vocab_size)
        else:
            write_rows(folder / name, synthetic_rows(content, 200, number), vocab_size)


def search_values(folder: Path, name: str) -> dict[str, Any]:
    """What a search of SEARCHES on two ranks computes; floats as hexadecimal text."""
    kind, stage = SEARCHES[name]
    write_corpora(folder, kind)
    values = copy.deepcopy(SETTINGS)
    values["run_dir"] = str(folder / "run")
    values["data"]["data_cache_path"] = str(folder / "cache")
    values["engine"]["zero_stage"] = stage
    bounds = {"min_weight": 0.0, "max_weight": 1.0}
    values["sources"] = [{"name": n, "path": str(folder / n), **bounds} for n in SOURCES]
    values["targets"] = [
        {"name": "target", "path": str(folder / "target"), "weight": 1.0, "reference_loss": 0.0}
    ]
    outcome = run_ranks(2, run_search, load(values))[0]
    return {
        "losses": hexadecimal(outcome["losses"]),
        "weights": hexadecimal(outcome["history"]),
        "logits": hexadecimal(outcome["logits"]),
        "products": hexadecimal(products_of(folder / "run")),
        "parameters": hashlib.sha256(outcome["parameters"].tobytes()).hexdigest(),
        "checkpoint": checkpoint_hashes(folder / "run"),
    }


def checkpoint_hashes(run_dir: Path) -> dict[str, str]:
    """By file of the last checkpoint, a hash of its arrays: parameters and Adam's moments."""
    hashes = {}
    for path in sorted(max((run_dir / "checkpoints").iterdir()).glob("*.npz")):
        digest = hashlib.sha256()
        with np.load(path, allow_pickle=False) as arrays:
            for key in sorted(arrays.files):
                digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}\n".encode())
                digest.update(arrays[key].tobytes())
        hashes[path.name] = digest.hexdigest()
    return hashes


def draws(folder: Path, name: str) -> dict[str, Any]:
    """The first 200 draws of a blend of BLENDS, and a hash of the tokens that they read."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    seed, options = BLENDS[name]
    write_corpora(folder, "text")
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=32,
        blend=([str(folder / n) for n in SOURCES], None),
        split="100,0,0",
        path_to_cache=str(folder / "cache"),
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    mixture = blend.LiveMixture(SHARES, block_size=12)
    with blend.install(mixture, num_samples=1000, splits=("train",), **options):
        sizes = [None, None, None]
        train = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]
    mixture.update(CHANGED, at_sample=96)
    sources, samples, digest = [], [], hashlib.sha256()
    for i in range(200):
        sample = train[i]
        source, within = train.order.locate(i)
        assert source == int(sample["dataset_id"])
        sources.append(str(source))
        samples.append(int(within))
        digest.update(sample["tokens"].numpy().astype("<i8").tobytes())
    return {"sources": "".join(sources), "samples": samples, "tokens": digest.hexdigest()}


def corpus_hashes(folder: Path) -> dict[str, str]:
    """By file, a hash of what preprocessing with bytes writes for text and for answers."""
    texts = [f"naïve {n} " + "def f(x):\n\treturn x\0" * (n % 7) for n in range(60)]
    records: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": text} for text in (*texts, "", "last\r\n")],
        "sentences": [{"text": texts[n : n + 3]} for n in range(0, 30, 3)],
        "question_answer": [{"question": f"{n} + 1?", "answer": f"{n + 1}"} for n in range(40)],
    }
    datasets = []
    for name, rows in records.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        datasets.append(
            DatasetConfig(
                prefix=str(folder / name),
                input=(str(path),),
                input_format="jsonl",
                record_type="question_answer" if name == "question_answer" else "text",
                json_key="text",
                split=None if name == "sentences" else "80,10,10",
            )
        )
    config = PreprocessConfig(
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        datasets=tuple(datasets),
        append_eod=True,
        workers=1,
    )
    preprocess(config, lambda line: None)
    files = sorted(path for path in folder.iterdir() if path.suffix in {".bin", ".idx"})
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def hexadecimal(values: Any) -> Any:
    """Floats as text that keeps every bit, in lists of the same shape."""
    if isinstance(values, list | np.ndarray):
        return [hexadecimal(value) for value in values]
    return float(values).hex()
