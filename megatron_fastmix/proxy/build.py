"""Which proxy a search trains, and from where it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_fastmix.config import ProxyConfig, SearchConfig
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.proxy.huggingface import build_huggingface_proxy, huggingface_flops_per_token
from megatron_fastmix.proxy.megatron_gpt import build_proxy, training_flops_per_token


def build_model(config: SearchConfig, vocab_size: int, dtype: torch.dtype) -> Any:
    """The proxy of a search at its start, the same on every rank; called as
    `model(tokens, positions, attention_mask, labels=labels)`."""
    proxy = config.proxy
    if proxy.kind == "huggingface":
        model: Any = build_huggingface_proxy(proxy, seed=config.seed, dtype=dtype)
        output_layer = model.model.get_output_embeddings().weight
    else:
        model = build_proxy(
            proxy,
            vocab_size=vocab_size,
            seq_length=config.data.seq_length,
            seed=config.seed,
            dtype=dtype,
            tensor_model_parallel_size=config.engine.tensor_model_parallel_size,
        )
        if proxy.checkpoint is not None:
            load_trained(model, Path(proxy.checkpoint))
        output_layer = model.output_layer.weight
        if output_layer is None:
            output_layer = model.shared_embedding_or_output_weight()
    output_layer.is_output_layer = True
    return model


def flops_per_token(config: ProxyConfig, vocab_size: int, seq_length: int) -> float:
    """Floating-point operations of one token's forward and backward pass."""
    if config.kind == "huggingface":
        return huggingface_flops_per_token(config, seq_length)
    return training_flops_per_token(config, vocab_size, seq_length)


def load_trained(model: torch.nn.Module, run_dir: Path) -> None:
    """Puts the weights of a search's newest checkpoint into `model`.

    Raises `CheckpointError` where there is none, or where its shapes differ.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from megatron_fastmix.search import checkpoint

    state = checkpoint.latest(run_dir)
    if state is None:
        raise CheckpointError(f"proxy.checkpoint: {run_dir} holds no checkpoint of a search")
    folder = run_dir / "checkpoints" / f"step-{state.step:08d}"
    if any(folder.glob("*zero_pp_rank*")):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name)
    else:
        file = folder / "mp_rank_00_model_states.pt"
        weights = torch.load(file, map_location="cpu", weights_only=False)["module"]
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"proxy.checkpoint: {folder} holds another model: {error}; set proxy.* to those of "
            f"{run_dir}/config.yaml"
        ) from None
    # Megatron's extra states are empty, and rotary frequencies are computed.
    wrong = [name for name in [*missing, *unexpected] if "_extra_state" not in name]
    if wrong:
        raise CheckpointError(
            f"proxy.checkpoint: {folder} holds another model; it differs in {', '.join(wrong)}"
        )
