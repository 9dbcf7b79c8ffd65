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
"$python" tools/train_tokenizer.py --vocab-size 2048 --tokenizer-model "$data/tokenizer.model" \
  --input "$data"/{python,docstrings,awscli,scripture,icd10,cpp}.jsonl
"$python" tools/preprocess_corpus.py --config configs/quickstart_corpora.yaml
"$python" -m megatron_fastmix.cli search --config configs/quickstart.yaml --run_dir="$run" "$@"
echo
echo "Or on Megatron's command line:"
"$python" tools/convert_weights.py "$run" --format megatron-cli
echo "Is it any good? $python tools/compare_mixtures.py --config configs/quickstart_compare.yaml \\"
echo "    --mixture $run --output ${run}_compare    (31 trainings, about 22 minutes on 2 cores)"
