#!/usr/bin/env bash
# From nothing to a learned Megatron blend on demo text: installs, fetches, tokenizes, searches.
# What is there already is used again, so a second run goes on where the first one ended.
#   bash launch/quickstart.sh [--key=value ...]    overrides of configs/quickstart.yaml
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh
fastmix="${VENV:-.venv}/bin/megatron-fastmix"
data=data/quickstart

"$fastmix" demo --output "$data"
"$fastmix" train-tokenizer --vocab-size 2048 --tokenizer-model "$data/tokenizer.model" \
  --input "$data"/{python,docstrings,awscli,scripture,icd10,cpp}.jsonl
"$fastmix" preprocess --config configs/quickstart_corpora.yaml
exec "$fastmix" search --config configs/quickstart.yaml "$@"
