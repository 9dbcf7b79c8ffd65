#!/usr/bin/env bash
# A search on this machine: all its GPUs, or 2 CPU ranks where it has none.
#   bash launch/search.sh --config my.yaml [--key=value ...] [--accept-changes]
# The same command again resumes; exit code 75 means stopped after a checkpoint.
#
# Edit, or set in the environment:
#   RANKS        processes (default: one per GPU, or 2)
#   LAUNCHER     deepspeed (default) or torchrun
#   PYTHON       interpreter with the package (default: .venv/bin/python, as launch/install.sh makes)
set -euo pipefail
launch_dir=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$launch_dir/../.venv/bin/python}
launcher=${LAUNCHER:-deepspeed}

# Inputs, run folder and configuration, before anything starts; prints the configuration to run.
config=$("$python" -m megatron_fastmix.cli check-hosts "$@")
flags=()
for argument in "$@"; do
  [ "$argument" = --accept-changes ] && flags+=("$argument")
done
case $launcher in
  deepspeed)
    exec "$python" -m megatron_fastmix.cli search --config "$config" \
      ${RANKS:+--num-ranks "$RANKS"} "${flags[@]}"
    ;;
  torchrun)
    if [ -z "${RANKS:-}" ]; then
      RANKS=$(nvidia-smi -L 2>/dev/null | grep -c ^GPU || true)
      [ "$RANKS" -gt 0 ] || RANKS=2
    fi
    # Without the address torchrun asks for this machine by name, which not every network knows.
    exec "$python" -m torch.distributed.run --standalone --local-addr 127.0.0.1 \
      --nproc-per-node "$RANKS" \
      -m megatron_fastmix.cli search --config "$config" "${flags[@]}"
    ;;
  *)
    echo "search.sh: LAUNCHER is $launcher; use deepspeed or torchrun" >&2
    exit 2
    ;;
esac
