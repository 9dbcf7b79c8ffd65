#!/usr/bin/env bash
# Makes the second environment of the tests: megatron.training comes with megatron-core 0.19, which
# needs Python 3.12. A second run changes nothing; tests/run.sh uses it where it is there.
#   bash tests/second_python.sh        makes .venv-3.12
# Environment: PYTHON, an interpreter of 3.12 or newer (default: python3.12, or pyenv's).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v python3.12 || true)}
if [ -z "${PYTHON:-}" ] && ! "${python:-false}" -c '' 2> /dev/null; then
  # A shim of pyenv is found but runs nothing where another version is set.
  python=$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python 2> /dev/null | tail -1 || true)
fi
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
  echo "second_python: found '${python:-no python3.12}'; Python 3.12 or newer is needed: set PYTHON" >&2
  exit 2
fi
PYTHON=$python VENV=.venv-3.12 exec bash launch/install.sh test
