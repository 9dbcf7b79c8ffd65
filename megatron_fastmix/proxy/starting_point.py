"""Checking what a proxy starts from, before a rank starts; imports neither torch nor Megatron."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_fastmix.config import ProxyConfig, TokenizerConfig, load_config
from megatron_fastmix.corpus.tokenizers import tokenizer_file
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.text_files import read_bytes, read_json_object


def check_starting_point(proxy: ProxyConfig, tokenizer: TokenizerConfig, vocab_size: int) -> None:
    """Raises `ConfigError` where the proxy cannot start from what its configuration names."""
    if proxy.kind == "huggingface":
        check_model_folder(proxy, vocab_size, tokenizer)
    elif proxy.checkpoint is not None:
        check_earlier_search(proxy, tokenizer, Path(proxy.checkpoint))


def check_earlier_search(proxy: ProxyConfig, tokenizer: TokenizerConfig, run_dir: Path) -> None:
    """The run must exist, and have trained a proxy of these sizes with this tokenizer."""
    if not RunFolder(run_dir).config.exists():
        raise ConfigError(f"proxy.checkpoint: {run_dir} is no run folder of a search")
    earlier = load_config(RunFolder(run_dir).config)
    sizes = dataclasses.replace(earlier.proxy, checkpoint=proxy.checkpoint)
    differing = [
        f"proxy.{f.name}: {getattr(sizes, f.name)!r} there, {getattr(proxy, f.name)!r} here"
        for f in dataclasses.fields(ProxyConfig)
        if getattr(sizes, f.name) != getattr(proxy, f.name)
    ]
    if earlier.tokenizer.tokenizer_type != tokenizer.tokenizer_type:
        differing.append(
            f"tokenizer.tokenizer_type: {earlier.tokenizer.tokenizer_type!r} there, "
            f"{tokenizer.tokenizer_type!r} here"
        )
    if earlier.engine.tensor_model_parallel_size != 1:
        differing.append("engine.tensor_model_parallel_size: must be 1 there")
    if differing:
        raise ConfigError(
            f"proxy.checkpoint: {run_dir} trained another model ({'; '.join(differing)}); use its "
            "settings"
        )


def check_model_folder(config: ProxyConfig, vocab_size: int, tokenizer: TokenizerConfig) -> None:
    """What can be known to be wrong of a local model directory without loading it.

    Raises `ConfigError` for a folder without config.json, a model without a causal head, one with
    fewer embeddings than the tokenizer has ids, and for a tokenizer.json that is not the run's. A
    path that is no folder is taken for a model's name on the hub and left to `transformers`.
    """
    assert config.path is not None
    folder = Path(config.path)
    if not folder.is_dir():
        if folder.is_absolute() or config.path.startswith("."):
            raise ConfigError(f"proxy.path: found no folder {config.path}; give a model directory")
        return
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
    causal = ("ForCausalLM", "LMHeadModel")
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
    if rows < vocab_size:
        raise ConfigError(
            f"proxy.path: {folder} embeds {rows} ids, the tokenizer has "
            f"{vocab_size}; preprocess the data with the model's own tokenizer"
        )
    own, model = folder / "tokenizer.json", tokenizer.tokenizer_model
    if not own.exists() or not model:
        return
    file = tokenizer_file(tokenizer.tokenizer_type, model)
    if read_bytes(file, "the tokenizer") != read_bytes(own, "the model's tokenizer"):
        raise ConfigError(
            f"tokenizer.tokenizer_model: {model} is not the tokenizer of the model; "
            f"preprocess the data with {own}"
        )
