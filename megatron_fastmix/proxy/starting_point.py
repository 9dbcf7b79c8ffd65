"""Checking what a proxy starts from, before a rank starts; imports neither torch nor Megatron."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

from megatron_fastmix.checkpoint.store import last_identity
from megatron_fastmix.config import ProxyConfig, TokenizerConfig, load_config
from megatron_fastmix.corpus.tokenizers.registry import tokenizer_file
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import Tokenizer
from megatron_fastmix.errors import CheckpointError, ConfigError
from megatron_fastmix.proxy.model_files import check_model_files
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.text_files import read_bytes, read_json_object, read_text


def check_starting_point(
    proxy: ProxyConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer, seq_length: int
) -> int:
    """Below what number ids of the data must be: the tokenizer's size, or that of the embedding.

    Raises `ConfigError` where the proxy cannot start from what its configuration names.
    """
    ids = tokenizer.vocab_size
    if proxy.kind == "huggingface":
        ids = check_model_folder(proxy, ids, tokenizer_config, seq_length)
        if proxy.path is not None and Path(proxy.path).is_dir():
            check_model_files(Path(proxy.path))
    elif proxy.checkpoint is not None and is_megatron_checkpoint(Path(proxy.checkpoint)):
        check_megatron_checkpoint(Path(proxy.checkpoint))
    elif proxy.checkpoint is not None:
        check_earlier_search(proxy, tokenizer.sha256, Path(proxy.checkpoint))
    return ids


_NO_PART_OF_THE_MODEL = (
    "checkpoint",
    "init_method_std",
    "make_vocab_size_divisible_by",  # rows beyond the vocabulary, which both models may have
    "recompute_granularity",
)


def is_megatron_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint folder of Megatron: of one iteration, or of all."""
    return (path / _LATEST).exists() or (path / _METADATA).exists()


_LATEST = "latest_checkpointed_iteration.txt"
_METADATA = "metadata.json"


def iteration_folder(path: Path) -> Path:
    """`path` where it is the folder of one iteration, or its newest. Raises `ConfigError`."""
    if (path / _METADATA).exists():
        return path
    file = path / _LATEST
    newest = read_text(file, "the newest iteration", error=ConfigError).strip()
    if newest != "release" and not re.fullmatch(r"[0-9]{1,18}", newest):
        raise ConfigError(
            f"proxy.checkpoint: {file} holds {newest[:40]!r}; expected release or the number of "
            "an iteration: write it, or give the folder iter_… itself"
        )
    folder = path / (newest if newest == "release" else f"iter_{int(newest):07d}")
    if not folder.is_dir():
        raise ConfigError(
            f"proxy.checkpoint: {path / _LATEST} names {newest}, but {folder} is gone"
        )
    return folder


def check_megatron_checkpoint(path: Path) -> None:
    """The folder must hold a distributed checkpoint in the format that Megatron-core reads at any
    parallel size."""
    folder = iteration_folder(path)
    if not (folder / _METADATA).exists():
        raise ConfigError(
            f"proxy.checkpoint: {folder} is no distributed checkpoint; convert it by loading it "
            "with Megatron and saving with --ckpt-format torch_dist (--ckpt-convert-format)"
        )
    backend = read_json_object(folder / _METADATA, "the checkpoint").get("sharded_backend")
    if backend != "torch_dist":
        raise ConfigError(
            f"proxy.checkpoint: {folder} is of format {backend}; save it with --ckpt-format "
            "torch_dist"
        )


def check_earlier_search(proxy: ProxyConfig, tokenizer_sha256: str, run_dir: Path) -> None:
    """The run must exist, and have trained a proxy of these sizes with this tokenizer."""
    if not RunFolder(run_dir).config.exists():
        raise ConfigError(
            f"proxy.checkpoint: {run_dir} is neither the run folder of a search nor a "
            "checkpoint of Megatron (iter_… or the folder above it)"
        )
    earlier = load_config(RunFolder(run_dir).config)
    sizes = earlier.proxy
    differing = [
        f"proxy.{f.name}: {getattr(sizes, f.name)!r} there, {getattr(proxy, f.name)!r} here"
        for f in dataclasses.fields(ProxyConfig)
        if f.name not in _NO_PART_OF_THE_MODEL and getattr(sizes, f.name) != getattr(proxy, f.name)
    ]
    with contextlib.suppress(CheckpointError):  # loading says which of them are damaged
        identity = last_identity(RunFolder(run_dir)) or {}
        before = identity.get("tokenizer", tokenizer_sha256)
        if before != tokenizer_sha256:
            name = earlier.tokenizer.tokenizer_model or earlier.tokenizer.tokenizer_type
            differing.append(
                f"tokenizer: {name}, of sha256 {before[:12]}..., there, {tokenizer_sha256[:12]}... "
                "here"
            )
    if differing:
        raise ConfigError(
            f"proxy.checkpoint: {run_dir} trained another model ({'; '.join(differing)}); use its "
            "settings"
        )


def check_hub_name(name: str) -> Path | None:
    """The cache's folder of the hub's model `name`, None without the hub's package. Raises
    `ConfigError` where it is neither in the cache nor to be had."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        return None  # building the model says which extra is missing
    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except Exception as error:
        # Its errors are of many kinds, and so are those of the libraries below it.
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ConfigError(
            f"proxy.path: {name} is no folder here, and the hub does not give a model of that name "
            f"({type(error).__name__}: {reason}); give a model directory, or download it where "
            "there is a network: hf download " + name
        ) from None


def check_model_folder(
    config: ProxyConfig, vocab_size: int, tokenizer: TokenizerConfig, seq_length: int
) -> int:
    """How many of the tokenizer's `vocab_size` ids the model embeds.

    A model's own tokenizer may have more: that of Gemma 3 names a token of images, for which those
    of text alone have no row. Raises `ConfigError` for what can be known to be wrong without
    loading the model: a folder without config.json, a model without a causal head, one of fewer
    positions than `seq_length` tokens need (as Megatron does), one with fewer embeddings than
    another tokenizer has ids, and a tokenizer.json that is not the run's. A path that is no folder
    is taken for a model's name on the hub.
    """
    assert config.path is not None
    folder = Path(config.path)
    if not folder.is_dir():
        if folder.is_absolute() or config.path.startswith("."):
            raise ConfigError(f"proxy.path: found no folder {config.path}; give a model directory")
        cached = check_hub_name(config.path)
        if cached is None:
            return vocab_size
        folder = cached
    file = folder / "config.json"
    if not file.exists():
        raise ConfigError(f"proxy.path: {folder} has no config.json; give a model directory")
    settings = read_json_object(
        file,
        "the model's configuration",
        fix="copy the model again",
        error=ConfigError,
        constants=True,
    )
    architectures = settings.get("architectures") or []
    text = settings.get("text_config")
    causal: tuple[str, ...] = ("ForCausalLM", "LMHeadModel")
    if isinstance(text, dict):  # a model of images and text, of which the decoder may be to be had
        settings, causal = text, (*causal, "ForConditionalGeneration")
    if not isinstance(architectures, list) or not any(
        isinstance(name, str) and name.endswith(causal) for name in architectures
    ):
        raise ConfigError(
            f"proxy.path: {file} names {architectures}, no causal language model; give a "
            "decoder-only model saved with its head"
        )
    rows = settings.get("vocab_size", vocab_size)
    if type(rows) is not int:
        raise ConfigError(f"proxy.path: {file}: vocab_size is {rows!r}; copy the model again")
    most = settings.get("max_position_embeddings", settings.get("n_positions"))
    rope = settings.get("rope_parameters", settings.get("rope_scaling"))
    stretched = any(kind in str(rope) for kind in ("dynamic", "linear", "longrope", "yarn"))
    if type(most) is int and most < seq_length and not stretched:
        raise ConfigError(
            f"data.seq_length: {seq_length} is beyond the model's {most} positions ({file}); use "
            f"{most} at most, or where they are rotary and are to reach further, raise "
            "max_position_embeddings there"
        )
    model = tokenizer.tokenizer_model
    used = tokenizer_file(tokenizer.tokenizer_type, model) if model else None
    own = folder / "tokenizer.json"
    if used is not None and (folder / used.name).exists():  # such as its tokenizer.model
        own = folder / used.name
    if used is not None and own.exists():
        if read_bytes(used, "the tokenizer") != read_bytes(own, "the model's tokenizer"):
            raise ConfigError(
                f"tokenizer.tokenizer_model: {model} is not the tokenizer of the model; "
                f"preprocess the data with {own}"
            )
    elif rows < vocab_size:
        raise ConfigError(
            f"proxy.path: {folder} embeds {rows} ids, the tokenizer has "
            f"{vocab_size}; preprocess the data with the model's own tokenizer"
        )
    return min(rows, vocab_size)
