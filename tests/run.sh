#!/usr/bin/env bash
# Runs the lint, the type check and the tests, in .venv, which it makes if need be.
#   bash tests/run.sh            everything
#   bash tests/run.sh quick      lint, types and the tests of seconds (under 3 minutes)
#   bash tests/run.sh [quick] ARGS...   further arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh test
bin="$PWD/${VENV:-.venv}/bin"
select=()
if [ "${1:-}" = quick ]; then
  shift
  select=(-m "not slow")
fi
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
exec "$bin/python" -m pytest "${select[@]}" "$@"
