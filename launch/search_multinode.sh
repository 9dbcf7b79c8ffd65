#!/usr/bin/env bash
# A search over the hosts of a hostfile, started from one of them by DeepSpeed's launcher.
#   bash launch/search_multinode.sh --config my.yaml [--key=value ...] [--accept-changes]
# The same command again resumes, from as many ranks or others; `touch RUN_DIR/stop` ends the search
# with a checkpoint and exit code 75.
#
# Before anything starts, every host of the hostfile is asked over ssh whether it has the same
# packages, configuration and data and shares the run folder; the message names the one that differs.
#
# What the hosts must have: this directory, the interpreter and the data under the same paths, a
# run_dir on a file system that they share, and ssh from the starting host without a password.
#
# Edit, or set in the environment:
#   HOSTFILE     lines HOST slots=RANKS (default: launch/hostfile; see launch/hostfile.example)
#   LAUNCHER     pdsh (default) or openmpi; either must be installed on the starting host
#   MASTER_ADDR  address of the first host, as the others reach it (default: its name, or the host
#                that an alias of ~/.ssh/config stands for)
#   MASTER_PORT  a free port there (default: 29500)
#   PYTHON       interpreter with the package (default: .venv/bin/python, as launch/install.sh makes)
#   PDSH_SSH_ARGS_APPEND   further options of ssh, such as -i KEY -p PORT
#   MPI_ARGS     further options of mpirun, such as --mca btl_tcp_if_include ib0
# Variables for the ranks go into .deepspeed_env in this directory or at home, one NAME=VALUE a line:
#   GLOO_SOCKET_IFNAME=eth0    on CPU ranks: the interface between the hosts. Without it gloo may bind
#                              to loopback and time out. NCCL_SOCKET_IFNAME is its like on GPUs.
#   DS_ACCELERATOR=cpu         for CPU ranks; set it for this script, too
#
# With torchrun instead, on every host, the same command:
#   torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_HOST:29500 \
#     -m megatron_fastmix.cli search --config my.yaml
set -euo pipefail
launch_dir=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$launch_dir/../.venv/bin/python}
hostfile=${HOSTFILE:-$launch_dir/hostfile}
launcher=${LAUNCHER:-pdsh}
master_port=${MASTER_PORT:-29500}

case $launcher in
  pdsh) tool=pdsh ;;
  openmpi) tool=mpirun ;;
  *)
    echo "search_multinode.sh: LAUNCHER is $launcher; use pdsh or openmpi" >&2
    exit 2
    ;;
esac
if ! command -v "$tool" > /dev/null; then
  echo "search_multinode.sh: LAUNCHER $launcher needs the command $tool: install its package" >&2
  exit 2
fi
# Prints the configuration to run; the ranks are given that, since pdsh would split arguments.
config=$("$python" -m megatron_fastmix.cli check-hosts --hostfile "$hostfile" "$@")
flags=()
for argument in "$@"; do
  [ "$argument" = --accept-changes ] && flags+=("$argument")
done
# The name alone: USER@ is for ssh, and no rank could resolve it; nor a carriage return from Windows.
first_host=$(awk '{ sub(/#.*/, ""); gsub(/\r/, "") }
  NF { sub(/^.*@/, "", $1); print $1; exit }' "$hostfile")
master_addr=${MASTER_ADDR:-}
# No rank could resolve an alias of ~/.ssh/config: they are given the host that it stands for.
if [ -z "$master_addr" ] && ! getent hosts "$first_host" > /dev/null; then
  # shellcheck disable=SC2086  # options
  master_addr=$(ssh -G ${PDSH_SSH_ARGS_APPEND:-} "$first_host" | awk '$1 == "hostname" { print $2 }') || true
fi
master_addr=${master_addr:-$first_host}
master_addr=${master_addr##*@}
# The launcher itself must notice when the link to a host is gone.
export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=15 -o ServerAliveCountMax=4 ${PDSH_SSH_ARGS_APPEND:-}"
launcher_args=
if [ "$launcher" = openmpi ]; then
  # mpirun would bind a rank to one core, with all its threads and those that read data.
  [[ ${MPI_ARGS:-} == *--bind-to* ]] || launcher_args="--bind-to none "
  launcher_args+="${MPI_ARGS:-} -x MASTER_ADDR=$master_addr -x MASTER_PORT=$master_port"
  launcher_args+=" --mca plm_rsh_args '$PDSH_SSH_ARGS_APPEND'"
fi
exec "$python" -m deepspeed.launcher.runner --hostfile "$hostfile" --launcher "$launcher" \
  --launcher_args="$launcher_args" --force_multi --no_ssh_check \
  --master_addr "$master_addr" --master_port "$master_port" --no_local_rank \
  --module megatron_fastmix.cli search --config "$config" "${flags[@]}"
