#!/usr/bin/env bash
# Runs the lint, the type check and the tests, in .venv, which it makes if need be.
#   bash tests/run.sh            everything; as root it also installs what tests/multinode and
#                              the report's page need
#   bash tests/run.sh quick      lint, types and the tests of seconds (under 3 minutes)
#   bash tests/run.sh [quick] ARGS...   further arguments go to pytest
# Where there is another .venv-*, such as one that bash tests/second_python.sh has made, all but
# quick first runs the tests of the patch layer and of Megatron's own scripts with its
# Megatron-core.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh test
bin="$PWD/${VENV:-.venv}/bin"
select=()
if [ "${1:-}" = quick ]; then
  shift
  select=(-m "not slow")
elif [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  # For tests/multinode and the page in a browser, which are skipped with a reason where these are
  # missing.
  packages=(openssh-server openssh-client pdsh openmpi-bin iproute2 chromium)
  if ! dpkg -s "${packages[@]}" &> /dev/null; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      "${packages[@]}"; } > /dev/null 2>&1 || echo "some of ${packages[*]} cannot be installed here"
  fi
fi
if [ ${#select[@]} = 0 ]; then
  for other in .venv-*/bin/python; do
    [ -x "$other" ] && [ "$PWD/$other" != "$bin/python" ] || continue
    echo "with $("$other" -c 'import megatron.core as m; print("megatron-core", m.__version__)' 2> /dev/null):"
    "$other" -m pytest -q tests/unit/test_{blend*,draw_order,export_megatron_arguments}.py \
      tests/unit/test_megatron_{options,resume,script,source_losses}.py tests/megatron_training
  done
fi
"$bin/ruff" check .
"$bin/ruff" format --check .
if [ $# = 0 ]; then
  # Two halves at once; the text of the second follows when the first is done. In a process group
  # of its own, since a job without one ignores Ctrl-C and so would the programs that it tests.
  # The first ends with what starts whole programs and waits for them.
  programs=(tests/distributed/test_{ends,faults,file_faults,launch,preemption,python_api,readme}.py)
  later=$(mktemp)
  set -m
  "$bin/python" -m pytest "${select[@]}" tests/distributed "${programs[@]/#/--ignore=}" \
    > "$later" 2>&1 &
  second=$!
  set +m
  trap 'kill -- -$second 2> /dev/null || true; rm -f "$later"' EXIT
  status=0
  "$bin/mypy" || status=1
  "$bin/python" -m pytest "${select[@]}" --ignore=tests/distributed || status=1
  "$bin/python" -m pytest "${select[@]}" "${programs[@]}" || status=1
  wait $second || status=1
  cat "$later"
  exit $status
fi
"$bin/mypy"
exec "$bin/python" -m pytest "${select[@]}" "$@"
