"""What part of a run the outer steps take, on paper."""

from __future__ import annotations

from collections.abc import Callable

from megatron_fastmix.config import HypergradientConfig, SearchConfig
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.start.plan import make_plan

PROXIES = {"160M": (12, 768, 2048), "1B": (16, 2048, 5504), "7B": (32, 4096, 11008)}
"""Layers, width and width of the feed-forward, with 2 × 50304 rows of embeddings."""


def outer_shares(config_of: Callable[..., SearchConfig]) -> list[Measurement]:
    """From `plan`: what part of a bf16 run on an H100 the outer steps take, at 17 sources,
    n1 = 20 and a million tokens a step.

    `config_of(name, sources, **changes)` makes a configuration."""
    rows, defaults = [], HypergradientConfig()
    for estimator in ("one_pass", "finite_difference"):
        for name, (layers, width, feed_forward) in PROXIES.items():
            config = config_of(
                f"paper{name}",
                17,
                mixture__inner_steps=20,
                data__seq_length=2048,
                training__global_batch_size=512,
                engine__dtype="bf16",
                hypergradient__estimator=estimator,
                hypergradient__target_samples=defaults.target_samples,
                hypergradient__probe_samples_per_source=defaults.probe_samples_per_source,
                proxy__num_layers=layers,
                proxy__hidden_size=width,
                proxy__ffn_hidden_size=feed_forward,
                # The rows of a common vocabulary, though the sources are bytes.
                proxy__make_vocab_size_divisible_by=50304,
                proxy__untie_embeddings_and_output_weights=True,
            )
            plan = make_plan(config, check_inputs(config, 1), ranks=1)
            rows.append(
                Measurement(
                    figure=f"outer steps of a bf16 run on an H100, on paper, {name}, {estimator}",
                    value=plan.outer_hours / plan.hours,
                    unit="share",
                )
            )
    return rows
