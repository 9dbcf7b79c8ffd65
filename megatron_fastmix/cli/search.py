"""The commands `search` and `check-hosts`.

By hand, `search` starts the ranks; under a launcher it is one of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.run.folder import CONFIG_FILE
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.start.check_hosts import (
    ask_nobody,
    ask_over_ssh,
    ask_with_srun,
    check_hosts,
    print_report,
    read_hostfile,
)
from megatron_fastmix.start.launch import launch
from megatron_fastmix.start.seeds import launch_seeds
from megatron_fastmix.start.worker import run_worker

_OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `search`; other --key=value arguments override the configuration."""
    parser.add_argument("--config", required=True, help="YAML file (configs/quickstart.yaml)")
    parser.add_argument(
        "--num-ranks", type=int, help="processes on this machine (default: one per GPU, or 2)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="search with N seeds, one after the other, and average them (default 1)",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although settings or the content of datasets changed since the checkpoint",
    )
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    parser.set_defaults(overrides=[])
    parser.epilog = "Further --key=value override it: --training.lr=1e-3, --train-iters=100."


def run(args: argparse.Namespace) -> int:
    """Runs the search; returns the exit code."""
    config = load_config(args.config, args.overrides)
    # DeepSpeed's launcher, torchrun and launch/search.sbatch set it for their ranks; mpirun has
    # names of its own.
    for name, mpi_name in _OPEN_MPI.items():
        if mpi_name in os.environ:
            os.environ.setdefault(name, os.environ[mpi_name])
    if "RANK" in os.environ:
        return run_worker(config, accept_changes=args.accept_changes)
    if args.seeds < 1:
        raise ConfigError(f"--seeds: found {args.seeds}; use 1 or more")
    if args.seeds > 1:
        return launch_seeds(config, args.seeds, args.num_ranks)
    return launch(config, args.num_ranks, accept_changes=args.accept_changes)


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `check-hosts`; other --key=value arguments override the
    configuration."""
    parser.add_argument("--config", required=True, help="YAML file of the search")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hostfile", help="lines HOST slots=RANKS (default: this host alone)")
    where.add_argument("--srun", action="store_true", help="the nodes of this SLURM job")
    parser.add_argument(
        "--accept-changes", action="store_true", help="as for search, which is to follow"
    )
    parser.add_argument("--token", help=argparse.SUPPRESS)
    parser.set_defaults(overrides=[])


def run_check(args: argparse.Namespace) -> int:
    """Checks the hosts of a search; prints the path of the configuration to start it with."""
    if args.token:
        print_report(args.config, args.token)
        return 0
    config = load_config(args.config, args.overrides)
    ranks, ask = config.engine.tensor_model_parallel_size, ask_nobody
    if args.hostfile:
        hosts = read_hostfile(args.hostfile)
        ranks, ask = sum(hosts.values()), partial(ask_over_ssh, hosts=list(hosts))
    elif args.srun:
        ranks, ask = int(os.environ["SLURM_NTASKS"]), ask_with_srun
    check_inputs(config, ranks)
    # The hosts see the configuration that the ranks will be given.
    folder = Path(config.run_dir)
    command = [sys.executable, "-m", "megatron_fastmix.cli", "check-hosts"]
    command += ["--config", str(folder.absolute() / CONFIG_FILE)]
    path = check_hosts(
        config,
        partial(ask, command),
        accept_changes=args.accept_changes,
        say=lambda text: print(text, file=sys.stderr),
    )
    print(path.absolute())
    return 0


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
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


def run_plan(args: argparse.Namespace) -> int:
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


COMMANDS = {
    "plan": ("say what a search would take, before anything runs", add_plan_arguments, run_plan),
    "check-hosts": ("check the hosts of a search before it starts", add_check_arguments, run_check),
    "search": ("learn a mixture while training a proxy", add_arguments, run),
}
