#!/usr/bin/env bash
# From nothing to a learned Megatron blend on demo text: installs, fetches, tokenizes, searches.
# What is there already is used again, so a second run goes on where the first one ended.
#   bash launch/quickstart.sh [--key=value ...]    overrides of configs/quickstart.yaml
# Environment: RUN_DIR (default runs/quickstart), PYTHON, VENV (see launch/install.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh
python="${VENV:-.venv}/bin/python"
data=data/quickstart
run=${RUN_DIR:-runs/quickstart}

"$python" -m megatron_fastmix.cli demo --output "$data"
"$python" -m megatron_fastmix.cli train-tokenizer --vocab-size 2048 --tokenizer-model "$data/tokenizer.model" \
  --input "$data"/{python,docstrings,awscli,scripture,icd10,cpp}.jsonl
"$python" -m megatron_fastmix.cli preprocess --config configs/quickstart_corpora.yaml
"$python" -m megatron_fastmix.cli search --config configs/quickstart.yaml --run_dir="$run" "$@"
echo
echo "Or on Megatron's command line:"
"$python" -m megatron_fastmix.cli export "$run" --format megatron-cli
echo "Is it any good? ${VENV:-.venv}/bin/megatron-fastmix compare-mixtures \\"
echo "    --config configs/quickstart_compare.yaml --mixture $run --output $run/comparison    (31 trainings, about 22 minutes on 2 cores)"
