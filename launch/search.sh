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

if [ -n "${RANKS:-}" ] && ! [[ $RANKS =~ ^[1-9][0-9]*$ ]]; then
  echo "search.sh: RANKS is $RANKS; use 1 or more, or leave it out" >&2
  exit 2
fi
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
      # Of either driver, in containers too; a device that torch cannot use is an error.
      RANKS=$("$python" - <<'PYTHON'
from megatron_fastmix.program import run_program
from megatron_fastmix.start.accelerators import visible_accelerators

raise SystemExit(run_program(lambda: print(len(visible_accelerators())), "search.sh"))
PYTHON
      )
      if [ "$RANKS" = 0 ]; then
        echo "search.sh: found no accelerator; training on 2 CPU ranks" >&2
        RANKS=2
      fi
    fi
    # Without the address torchrun asks for this machine by name, which not every network knows.
    exec "$python" -m megatron_fastmix.start.torchrun --standalone --local-addr 127.0.0.1 \
      --nproc-per-node "$RANKS" \
      -m megatron_fastmix.cli search --config "$config" "${flags[@]}"
    ;;
  *)
    echo "search.sh: LAUNCHER is $launcher; use deepspeed or torchrun" >&2
    exit 2
    ;;
esac
