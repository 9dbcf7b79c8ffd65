#!/usr/bin/env bash
# Makes what the scenarios in configs/methods read, then every search and target training that
# tools/method_rows lacks: days of one core where all is missing, pretrain_large alone 33 hours.
#   bash launch/methods.sh [--seeds 6 ...]    arguments of tools/compare_methods.py
# The tables of the rows that are there need none of this:
#   .venv/bin/python tools/compare_methods.py --table-only --scenario configs/methods/*.yaml
# Environment: PYTHON, VENV (see launch/install.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
python="${VENV:-.venv}/bin/python"

pretrain() { # folder, overrides
  RUN_DIR=$1 bash launch/quickstart.sh --train-iters=100 --save-interval=100 "${@:2}"
}
pretrain runs/quickstart_100_steps
pretrain runs/methods_proxy --proxy.num_layers=2 --proxy.hidden_size=64 --proxy.num_attention_heads=2
bash launch/install.sh baselines
"$python" -m megatron_fastmix.cli demo --kind answers --output data/quickstart_sft
"$python" -m megatron_fastmix.cli preprocess --config configs/quickstart_sft_corpora.yaml
"$python" -m megatron_fastmix.cli preprocess --config configs/methods_corpora.yaml
"$python" -m megatron_fastmix.cli demo --kind large --output data/methods_large
"$python" -m megatron_fastmix.cli preprocess --config configs/methods_large_corpora.yaml
"$python" -m megatron_fastmix.cli preprocess --config configs/studies_corpora.yaml
"$python" tools/compare_methods.py --scenario configs/methods/*.yaml "$@"
