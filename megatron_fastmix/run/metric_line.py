"""Which types the values in a line of `metrics.jsonl` have, checked where the file is read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from megatron_fastmix.config import strict_yaml

_Number = float | None
_ByName = dict[str, float | None]

_RUN = {
    "sources": list[str],
    "targets": list[str],
    "initial_weights": dict[str, float],
    "weights": dict[str, float],
    "source_tokens": dict[str, int],
    "token_budget": int | None,
    "config": dict[str, Any],
    "train_iters": int | None,
    "averaging_fraction": float,
    "seed": int | None,
    "parameters": int | None,
    "warnings": list[str],
}
_STEP = {
    "loss": _Number,
    "source_loss": _ByName,
    "lr": _Number,
    "grad_norm": _Number,
    "tokens": int,
    "tokens_per_second": _Number,
    "seconds": _Number,
    "data_seconds": _Number,
    "nonfinite_gradients": int,
    "outer_step": int,
    "weights": dict[str, float],
    "logits": _ByName,
    "products": _ByName,
    "products_standard_error": _ByName,
    "noise_to_signal": _Number,
    "hypergradient": _ByName,
    "advantage": _ByName,
    "advantage_standard_error": _ByName,
    "probe_samples": _ByName,
    "group_loss": _ByName,
    "group_weights": dict[str, float],
    "group_advantage": _ByName,
    "group_advantage_standard_error": _ByName,
    "target_loss": _ByName,
    "target_weight": _ByName,
    "target_products": dict[str, dict[str, float | None]] | None,
    "path": str,
    "complete": bool,
    "training_flops": _Number,
}
_CONFIG = {
    "run_dir": str,
    "seed": int,
    "sources": list[dict[str, Any]],
    "groups": list[dict[str, Any]],
    **dict.fromkeys(("mixture", "training", "objective", "hypergradient", "proxy"), dict[str, Any]),
    "mixture.averaging_fraction": float,
    "mixture.inner_steps": int,
    "training.train_iters": int,
    "objective.train_loss_weight": float,
    "hypergradient.preconditioner": str,
    "proxy.path": str | None,
    "proxy.num_layers": int | None,
    "proxy.hidden_size": int | None,
}
_BOUNDED = {"name": str, "group": str | None, "min_weight": float, "max_weight": float}


def check_line(line: dict[str, Any], *, known: Collection[str] = ()) -> None:
    """Raises `ConfigError` that names the first key whose value has another type.

    Keys that a line lacks or that are not known pass: releases before and after have others. Those
    of `known` are mappings to numbers.
    """
    for key, hint in {"time": _Number, **(_RUN if line["kind"] == "run" else _STEP)}.items():
        if key in line and key not in known:
            strict_yaml.check_type(hint, line[key], key)
    config: dict[str, Any] = (line.get("config") or {}) if line["kind"] == "run" else {}
    for key, hint in _CONFIG.items():
        section, _, last = key.rpartition(".")
        values = config.get(section, {}) if section else config
        if last in values:
            strict_yaml.check_type(hint, values[last], f"config.{key}")
    for kind in ("sources", "groups"):
        for number, each in enumerate(config.get(kind, [])):
            for key in _BOUNDED.keys() & each.keys():
                where = f"config.{kind}.{number}.{key}"
                strict_yaml.check_type(_BOUNDED[key], each[key], where)
