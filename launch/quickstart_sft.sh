#!/usr/bin/env bash
# Learns a fine-tuning mixture on demo rows, starting from the quickstart's pretrained proxy.
# What is there already is used again, so a second run goes on where the first one ended.
#   bash launch/quickstart_sft.sh [--key=value ...]    overrides of configs/quickstart_sft.yaml
# Environment: PRETRAINED (run folder of a finished launch/quickstart.sh, default runs/quickstart; if
# there is none, 100 steps of it are trained first), RUN_DIR (default runs/quickstart_sft), PYTHON,
# VENV (see launch/install.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh
python="${VENV:-.venv}/bin/python"
run=${RUN_DIR:-runs/quickstart_sft}
pretrained=${PRETRAINED:-runs/quickstart}

if [ ! -f data/quickstart/tokenizer.model ] || [ ! -d "$pretrained/checkpoints" ]; then
  if [ -n "${PRETRAINED:-}" ]; then
    echo "quickstart_sft.sh: PRETRAINED is $PRETRAINED, and there is no $PRETRAINED/checkpoints or" \
      "data/quickstart/tokenizer.model" >&2
    exit 2
  fi
  pretrained=runs/quickstart_100_steps
  RUN_DIR=$pretrained bash launch/quickstart.sh --train-iters=100 --save-interval=100
fi
"$python" -m megatron_fastmix.cli demo --kind answers --output data/quickstart_sft
"$python" -m megatron_fastmix.cli preprocess --config configs/quickstart_sft_corpora.yaml
"$python" -m megatron_fastmix.cli search --config configs/quickstart_sft.yaml \
  --run_dir="$run" --proxy.checkpoint="$pretrained" "$@"
