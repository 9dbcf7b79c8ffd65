#!/usr/bin/env bash
# Learns a mixture for continued training: goes on from the quickstart's proxy on other sources, with a
# replay source and a target that must not be forgotten.
# What is there already is used again, so a second run goes on where the first one ended.
#   bash launch/quickstart_midtrain.sh [--key=value ...]    overrides of configs/quickstart_midtrain.yaml
# Environment: PRETRAINED (run folder of a finished launch/quickstart.sh; default runs/quickstart, or
# where there is none 100 steps of it, which are trained first), RUN_DIR (default
# runs/quickstart_midtrain), PYTHON, VENV (see launch/install.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh
python="${VENV:-.venv}/bin/python"
run=${RUN_DIR:-runs/quickstart_midtrain}
pretrained=${PRETRAINED:-runs/quickstart}

if [ ! -d "$pretrained/checkpoints" ]; then
  if [ -n "${PRETRAINED:-}" ]; then
    echo "quickstart_midtrain.sh: PRETRAINED is $PRETRAINED, and there is no $PRETRAINED/checkpoints" >&2
    exit 2
  fi
  pretrained=runs/quickstart_100_steps
  RUN_DIR=$pretrained bash launch/quickstart.sh --train-iters=100 --save-interval=100
fi
"$python" -m megatron_fastmix.cli preprocess --config configs/quickstart_midtrain_corpora.yaml
"$python" -m megatron_fastmix.cli search --config configs/quickstart_midtrain.yaml \
  --run_dir="$run" --proxy.checkpoint="$pretrained" "$@"
