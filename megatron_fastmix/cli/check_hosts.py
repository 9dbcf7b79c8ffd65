"""The verb `check-hosts`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path

from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.search.budget import offered_shares
from megatron_fastmix.search.copies import copied_targets
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.start.ask_hosts import ask_nobody, ask_over_ssh, ask_with_srun, slurm_count
from megatron_fastmix.start.check_hosts import check_hosts
from megatron_fastmix.start.from_run import start_from
from megatron_fastmix.start.host_report import print_report
from megatron_fastmix.start.hostfile import read_hostfile

HELP = "check the hosts of a search before it starts"


_NOT_HERE = {
    "--seeds": "start one search for each, with --seed and --run-dir",
    "--num-ranks": "the hostfile's slots or the job's tasks say how many there are, and RANKS for "
    "launch/search.sh",
}
"""Flags of `search` that its launch scripts hand to this command, too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `check-hosts`; other --key=value arguments override the
    configuration."""
    parser.add_argument("--config", required=True, help="YAML file of the search")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hostfile", help="lines HOST slots=RANKS (default: this host alone)")
    where.add_argument("--srun", action="store_true", help="the nodes of this SLURM job")
    parser.add_argument(
        "--accept-changes", action="store_true", help="as for search, which is to follow"
    )
    parser.add_argument("--from", dest="from_run", metavar="RUN", help="as for search")
    parser.add_argument("--token", help=argparse.SUPPRESS)
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    """Checks the hosts of a search; prints the path of the configuration to start it with."""
    if args.token:
        print_report(args.config, args.token)
        return 0
    for flag, instead in _NOT_HERE.items():
        if any(word.split("=")[0] == flag for word in args.overrides):
            raise ConfigError(f"{flag}: is no flag of the launch scripts; {instead}")
    config = load_config(args.config, args.overrides)
    if args.from_run is not None:  # it ends in the configuration, which is all that the ranks need
        found = start_from(config, args.from_run)
        config = found.config
        print(f"From {args.from_run}: {found.text}.", file=sys.stderr)
    ranks, ask = config.engine.tensor_model_parallel_size, ask_nobody
    if args.hostfile:
        for what, path in (
            ("run_dir", os.path.abspath(config.run_dir)),
            ("working directory", os.getcwd()),
        ):
            if not re.fullmatch(r"[\w./@%+=:,-]+", path):
                raise ConfigError(
                    f"{what}: found {path!r}; the launcher hands it to a shell on each host: use "
                    "letters, digits and . _ / - alone"
                )
        hosts = read_hostfile(args.hostfile)
        ranks, ask = sum(hosts.values()), partial(ask_over_ssh, hosts=list(hosts))
    elif args.srun:
        ranks, ask = slurm_count("SLURM_NTASKS"), ask_with_srun
    offered_shares(config, check_inputs(config, ranks))
    for line in copied_targets(config):
        print(f"megatron-fastmix: {line}", file=sys.stderr)
    # The hosts see the configuration that the ranks will be given.
    command = [sys.executable, "-m", "megatron_fastmix.cli", "check-hosts"]
    command += ["--config", str(RunFolder(Path(config.run_dir).absolute()).config)]
    run_dir = check_hosts(
        config,
        partial(ask, command),
        accept_changes=args.accept_changes,
        say=lambda text: print(text, file=sys.stderr),
    )
    print(run_dir.absolute())
    return 0
