"""The verb `search`: by hand it starts the ranks; under a launcher it is one of them."""

from __future__ import annotations

import argparse
import os

from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.start.from_run import start_from
from megatron_fastmix.start.launch import launch
from megatron_fastmix.start.seeds import launch_seeds
from megatron_fastmix.start.worker import run_worker

HELP = "learn a mixture while training a proxy"


_OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `search`; other --key=value arguments override the configuration."""
    parser.add_argument(
        "--config", required=True, help="YAML file, such as configs/quickstart.yaml"
    )
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
        "--from",
        dest="from_run",
        metavar="RUN",
        help="start from a finished run to which at least one source was added, or of which one "
        "was rebuilt; others may be dropped. Those it knew keep their relative weights, the others "
        "are learned. Needs a run_dir of its own",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although settings, the content of datasets or, by a release, the order of "
        "draws changed since the checkpoint",
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
    is_rank = _is_rank()
    if args.from_run is not None:
        found = start_from(config, args.from_run)
        config = found.config
        if os.environ.get("RANK", "0") == "0":
            print(f"From {args.from_run}: {found.text}.", flush=True)
    if is_rank and args.seeds > 1:
        raise ConfigError(
            f"--seeds: found {args.seeds} under a launcher, whose ranks run one search; start one "
            "with each --seed and --run-dir, or run the command without the launcher"
        )
    if is_rank:
        return run_worker(config, accept_changes=args.accept_changes)
    if args.seeds < 1:
        raise ConfigError(f"--seeds: found {args.seeds}; use 1 or more")
    if args.seeds > 1:
        return launch_seeds(config, args.seeds, args.num_ranks, accept_changes=args.accept_changes)
    return launch(config, args.num_ranks, accept_changes=args.accept_changes)


def _is_rank() -> bool:
    """Whether a launcher started this process. Operators of Kubernetes number the pods of a job by
    RANK, too, without a LOCAL_RANK; the ranks of a single pod are started here. Raises
    `ConfigError` in one of several."""
    if "RANK" not in os.environ or "LOCAL_RANK" in os.environ:
        return "RANK" in os.environ
    pods = os.environ.get("WORLD_SIZE", "1")
    if pods == "1":
        return False
    raise ConfigError(
        f"LOCAL_RANK: is not set beside RANK {os.environ['RANK']} of WORLD_SIZE {pods}, as in the "
        "pods of Kubernetes; start the ranks of each by torchrun (see "
        "launch/search_multinode.sh), or set LOCAL_RANK=0 where each pod is one rank"
    )
