#!/usr/bin/env bash
# Makes an environment of the lowest versions that setup.py admits, and runs the quick tier there:
# every `>=` of the package and of its extras is installed as `==`.
#   bash tests/lower_bounds.sh              makes .venv-lower, 8 GB where torch comes with CUDA
#   bash tests/lower_bounds.sh ARGS...      arguments go to pytest in the place of the quick tier
# A second run installs nothing as long as setup.py is what it was.
# Environment: PYTHON (3.11, the lowest that is supported; default python3.11, or python3), VENV
# (default .venv-lower), TORCH_INDEX (where torch alone comes from; for torch without CUDA
# https://download.pytorch.org/whl/cpu).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-lower}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  echo "lower_bounds: $python is $("$python" --version 2>&1); Python 3.11 is needed: set PYTHON" >&2
  exit 2
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
stamp="$venv/.installed-lower"
if ! cmp -s setup.py "$stamp"; then
  # Not among them: the checkers, since the code is held to one version of each, and the two tools
  # that read exports, which want newer versions of what we share with them (tqdm, PyYAML).
  "$venv/bin/python" - > "$venv/lower.txt" <<'PYTHON'
import re
import runpy
import setuptools

kept = {}
setuptools.setup = lambda **arguments: kept.update(arguments)
runpy.run_path("setup.py")
named = [*kept["install_requires"], *kept["extras_require"]["test"]]
for requirement in named:
    found = re.match(r"([A-Za-z0-9_-]+)>=([0-9.]+)", requirement)
    if found and found[1] not in ("ruff", "mypy", "datasets", "megatron-energon"):
        print(f"{found[1]}=={found[2]}")
PYTHON
  torch=$(grep '^torch==' "$venv/lower.txt")
  "$venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
  "$venv/bin/pip" install --quiet --constraint "$venv/lower.txt" --requirement "$venv/lower.txt" \
    --editable .
  cp setup.py "$stamp"
fi
if [ $# = 0 ]; then
  set -- -m "not slow"
fi
exec "$venv/bin/python" -m pytest -q "$@"
