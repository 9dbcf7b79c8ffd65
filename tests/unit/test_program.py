"""How commands end."""

import signal
import subprocess
import sys

from megatron_fastmix.cli import entry
from megatron_fastmix.errors import DataError
from megatron_fastmix.program import run_program


def test_the_code_is_the_commands_own_or_its_errors(capsys):
    assert run_program(lambda: None, "tool") == 0
    assert run_program(lambda: 75, "tool") == 75

    def fail():
        raise DataError("a.bin: found nothing; write it")

    assert run_program(fail, "tool") == 2
    assert capsys.readouterr().err == "tool: a.bin: found nothing; write it\n"


def test_a_reader_that_goes_away_and_an_interrupt_leave_no_traceback():
    code = (
        "import sys; from megatron_fastmix.program import run_program; "
        "sys.exit(run_program({}, 'tool'))"
    )
    many = code.format("lambda: print('line\\n' * 100_000)")
    writer = subprocess.Popen(
        [sys.executable, "-c", many], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "line\n"
    writer.stdout.close()
    assert writer.stderr.read() == ""
    assert writer.wait() == 141

    # A suite that a shell runs in the background hands on an interrupt that is ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    asleep = heard + code.format(
        "lambda: (print('ready', flush=True), __import__('time').sleep(60))"
    )
    sleeper = subprocess.Popen(
        [sys.executable, "-c", asleep], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert sleeper.stdout.readline() == "ready\n"
    sleeper.send_signal(signal.SIGINT)
    assert sleeper.stderr.read() == "tool: interrupted\n"
    assert sleeper.wait() == 130
    sleeper.stdout.close()
    for process in (writer, sleeper):
        process.stderr.close()


def test_an_interrupt_of_the_imports_is_one_line(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "megatron_fastmix.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "megatron_fastmix.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert entry.main() == 130
    assert capsys.readouterr().err == "megatron-fastmix: interrupted\n"
