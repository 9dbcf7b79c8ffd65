#!/usr/bin/env bash
# Makes .venv beside setup.py and installs the package into it; a second run changes nothing.
#   bash launch/install.sh [--system-site-packages] [EXTRA]   EXTRA: an extra of setup.py, such as test
# With --system-site-packages, in an environment that has its own torch (NGC and other containers),
# the packages there stay as they are, and only what is missing is installed beside them; PYTHON may
# also be that of a virtual environment.
# Environment: PYTHON (default python3, 3.11 or newer), VENV (default .venv), WHEELS (a folder of
# wheels to install from without a network; on a machine that has one and the same Python,
# `pip download --constraint launch/constraints.txt --dest DIR '.[corpus]' setuptools wheel` fills
# it, and `pip wheel --no-deps --wheel-dir DIR DIR/*.tar.gz` makes wheels of what has none).
set -euo pipefail
cd "$(dirname "$0")/.."
shared=
if [ "${1:-}" = --system-site-packages ]; then
  shared=$1
  shift
fi
extra=${1:-corpus}
if ! grep -q "^        \"$extra\":" setup.py; then
  echo "install: $extra is no extra; there are:" \
    "$(sed -n 's/^        "\([a-z]*\)":.*/\1/p' setup.py | tr '\n' ' ')" >&2
  exit 2
fi
python=${PYTHON:-python3}
venv=${VENV:-.venv}
stamp="$venv/.installed-$extra"

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "install: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed: set PYTHON" >&2
  exit 2
fi
[ -x "$venv/bin/python" ] || "$python" -m venv $shared "$venv"
constraints=launch/constraints.txt
if [ -n "$shared" ]; then
  # `venv` shares the packages of the Python that a virtual environment was made from, not those of
  # the environment itself.
  "$python" - > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth" <<'PYTHON'
import sys
import sysconfig

if sys.prefix != sys.base_prefix:
    print(sysconfig.get_path("purelib"))
PYTHON
  # Their versions, not ours: torch and what is built against it are not touched.
  constraints="$venv/constraints-of-the-environment.txt"
  "$python" - > "$constraints" <<'PYTHON'
from importlib.metadata import distributions

for name, version in sorted({(d.metadata["Name"], d.version) for d in distributions()}):
    if name and version:
        print(f"{name}=={version}")
PYTHON
fi
if ! cmp -s <(cat setup.py launch/constraints.txt $(find megatron_fastmix -name "*.c" | sort)) "$stamp"; then
  log="$venv/install.log"
  rm -f "$log"
  if ! "$venv/bin/pip" install --quiet --progress-bar off --log "$log" --constraint "$constraints" \
    ${WHEELS:+--no-index --find-links "$WHEELS"} --editable ".[$extra]"; then
    # Which versions conflict is what --quiet leaves out.
    sed -n 's/^[^ ]* //; /The conflict is caused by/,/^ *$/p' "$log" >&2
    echo "install: pip failed; all that it said is in $log" >&2
    exit 1
  fi
  cat setup.py launch/constraints.txt $(find megatron_fastmix -name "*.c" | sort) > "$stamp"
  echo "installed; for the commands by name: source $venv/bin/activate" >&2
fi
