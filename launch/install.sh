#!/usr/bin/env bash
# Makes .venv beside setup.py and installs the package into it; a second run changes nothing.
#   bash launch/install.sh [EXTRA]      EXTRA: an extra of setup.py, such as test
# Environment: PYTHON (default python3, 3.11 or newer), VENV (default .venv).
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-corpus}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
stamp="$venv/.installed-$extra"

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "install: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed: set PYTHON" >&2
  exit 2
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
if ! cmp -s <(cat setup.py launch/constraints.txt $(find megatron_fastmix -name "*.c" | sort)) "$stamp"; then
  "$venv/bin/pip" install --quiet --constraint launch/constraints.txt --editable ".[$extra]"
  cat setup.py launch/constraints.txt $(find megatron_fastmix -name "*.c" | sort) > "$stamp"
fi
