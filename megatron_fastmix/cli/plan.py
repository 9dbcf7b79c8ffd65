"""The verb `plan`."""

from __future__ import annotations

import argparse

from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.search.inputs import check_inputs

HELP = "say what a search would take, before anything runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `plan`; other --key=value arguments override the configuration."""
    parser.add_argument("--config", required=True, help="YAML file of the search")
    parser.add_argument("--nodes", type=int, default=1, help="default 1")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="default 8")
    parser.add_argument(
        "--tflops", type=float, help="peak of one GPU (default: an H100's at engine.dtype)"
    )
    parser.add_argument(
        "--utilisation", type=float, default=0.3, help="share of the peak (default 0.3)"
    )
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    """Prints what a search would take; starts nothing. Raises `ConfigError` and `DataError`."""
    config = load_config(args.config, args.overrides)
    for name in ("nodes", "gpus_per_node"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: found {getattr(args, name)}; use 1 or more")
    if not 0 < args.utilisation <= 1:
        raise ConfigError(f"--utilisation: found {args.utilisation}; use a share above 0, up to 1")
    if args.tflops is not None and args.tflops <= 0:
        raise ConfigError(f"--tflops: found {args.tflops}; use the peak of one GPU")
    ranks = args.nodes * args.gpus_per_node
    inputs = check_inputs(config, ranks)
    from megatron_fastmix.start import plan  # imports torch

    on = {
        "ranks": ranks,
        "tflops": args.tflops or plan.PEAK_TFLOPS[config.engine.dtype],
        "utilisation": args.utilisation,
    }
    print(plan.text(plan.make_plan(config, inputs, **on), config, **on))
    return 0
