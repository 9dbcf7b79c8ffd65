"""The verb `plan`."""

from __future__ import annotations

import argparse
import math

from megatron_fastmix.config import SearchConfig, load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.search.budget import offered_shares
from megatron_fastmix.search.inputs import assumed_inputs, check_inputs
from megatron_fastmix.start.accelerators import visible_accelerators
from megatron_fastmix.token_count import token_count

HELP = "say what a search would take, before anything runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `plan`; other --key=value arguments override the configuration."""
    parser.add_argument("--config", required=True, help="YAML file of the search")
    parser.add_argument("--nodes", type=int, default=1, help="default 1")
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        help="default: those of this machine, or else as many, up to 8, as the batch divides into",
    )
    parser.add_argument(
        "--memory-gib", type=float, default=80.0, help="memory of one GPU (default 80)"
    )
    parser.add_argument(
        "--assume-tokens",
        type=token_count,
        metavar="TOKENS",
        help="plan before the data are there: tokens of each source (300B, 3e11)",
    )
    parser.add_argument(
        "--assume-vocab-size", type=int, default=50_304, help="with --assume-tokens (default 50304)"
    )
    parser.add_argument(
        "--tflops", type=float, help="peak of one GPU (default: an H100's at engine.dtype)"
    )
    parser.add_argument(
        "--utilisation", type=float, default=0.3, help="share of the peak (default 0.3)"
    )
    parser.set_defaults(overrides=[])
    parser.epilog = (
        "--token-budget TOKENS (300B, 3e11), of the run to come, is data.token_budget, as with "
        "search; --output.token_budget TOKENS only counts how much of that run the search sees and "
        "how often it would read each source."
    )


def run(args: argparse.Namespace) -> int:
    """Prints what a search would take; starts nothing. Raises `ConfigError` and `DataError`."""
    config = load_config(args.config, args.overrides)
    for name in ("nodes", "gpus_per_node"):
        value = getattr(args, name)
        if value is not None and value < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: found {getattr(args, name)}; use 1 or more")
    if not 0 < args.utilisation <= 1:
        raise ConfigError(f"--utilisation: found {args.utilisation}; use a share above 0, up to 1")
    for name, what in (("tflops", "peak"), ("memory_gib", "memory")):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: found {value:g}; use the {what} of one GPU, above 0")
    if not 0 < args.assume_vocab_size < 1 << 31:
        raise ConfigError(
            f"--assume-vocab-size: found {args.assume_vocab_size}; use 1 or more, below 2^31"
        )
    per_node = args.gpus_per_node or gpus_of_a_node(config, args.nodes)
    ranks = args.nodes * per_node
    if args.assume_tokens is None:
        inputs = check_inputs(config, ranks)
    else:
        config.accumulation_steps(config.data_parallel_size(ranks))
        inputs = assumed_inputs(config, args.assume_tokens, args.assume_vocab_size)
    from megatron_fastmix.start import plan  # imports torch

    on = {"ranks": ranks, "tflops": args.tflops, "utilisation": args.utilisation}
    made = plan.make_plan(config, inputs, **on)
    if args.gpus_per_node is None:
        print(f"For {args.nodes} node(s) of {per_node} GPUs (--nodes, --gpus-per-node).")
    budget = config.token_budget
    print(plan.text(made, config, **on, memory_gib=args.memory_gib, budget=budget))
    offered = offered_shares(config, inputs)
    if offered is not None:
        least, most = (f"{edge(offered.values()):.3g}" for edge in (min, max))
        part = least if least == most else f"{least} to {most}"
        print(
            f"\ndata.token_budget: the search reads {part} of every source's samples, the same in "
            "training and probe, and repeats them as the run will"
        )
    if budget is not None:
        print(f"\nA run of {budget:.4g} tokens at the start mixture would read")
        for (name, share), size in zip(made.start.items(), inputs.sources, strict=True):
            print(f"  {name}: {budget * share / size.size.loss_tokens:.3g} times")
    return 0


def gpus_of_a_node(config: SearchConfig, nodes: int) -> int:
    """The accelerators of this machine, or else the most, up to 8, that the batch divides into."""
    devices = len(visible_accelerators())
    if devices:
        return devices
    split = config.engine.tensor_model_parallel_size
    for count in range(8, 0, -1):
        if count * nodes % split:
            continue
        per_pass = config.training.micro_batch_size * (count * nodes // split)
        if config.training.global_batch_size % per_pass == 0:
            return count
    return 1
