"""The command line answers at once."""

import subprocess
import sys


def test_the_command_line_starts_without_torch():
    code = "import sys, megatron_fastmix.cli; print({'torch', 'megatron.core'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
