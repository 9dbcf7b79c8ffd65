"""Whether the estimator can take every module of the proxy, asked before a rank starts."""

from __future__ import annotations

from megatron_fastmix.config import SearchConfig


def check_estimator(config: SearchConfig) -> None:
    """Raises `ConfigError` with the module of a Hugging Face proxy that `one_pass` cannot take.

    The model is built without its weights. Megatron's layers are known from the configuration; a
    provider's model first exists on the ranks, which ask the same before they train.
    """
    if config.hypergradient.estimator != "one_pass" or config.proxy.kind != "huggingface":
        return
    # These take seconds, and only this case needs them.
    from megatron_fastmix.hypergradient.sites import check_supported
    from megatron_fastmix.proxy.huggingface import without_weights

    check_supported(without_weights(config.proxy))
