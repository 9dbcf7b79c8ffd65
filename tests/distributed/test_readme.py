"""The commands that the READMEs show, run as they are written where the machine can, in a folder
with the files that they name, and else parsed by the programs' own parsers."""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_fastmix.cli.main import VERBS, add_verb
from megatron_fastmix.megatron.options import split_arguments

ROOT = Path(__file__).parents[2]
READMES = [
    path
    for path in ("README.md", "megatron_fastmix/README.md", "tools/README.md")
    if (ROOT / path).exists()
] + ["tools/method_rows/README.md"]
SMALL = (
    *("--train-iters=4", "--num-layers=1", "--hidden-size=32", "--num-attention-heads=2"),
    *("--ffn-hidden-size=64", "--seq-length=64", "--micro-batch-size=2", "--global-batch-size=4"),
    *("--fastmix-inner-steps=2", "--lr-warmup-iters=0", "--hypergradient.target_samples=4"),
    *("--probe-samples-per-source=2", "--dtype=fp32", "--recompute-granularity=null"),
)
"""What is put behind a search's own arguments, so that it ends in seconds on a CPU."""


def blocks(text: str, *languages: str) -> Iterator[str]:
    """The fenced blocks of a README in these languages; "" is a block without one."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language in languages:
            yield body


def commands(text: str) -> list[str]:
    """The commands in the blocks, without comments."""
    lines = [
        line
        for body in blocks(text, "", "bash", "sh", "console")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    return _commands_among(lines)


def named_commands(text: str) -> list[str]:
    """Those in sentences, in single backticks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return _commands_among([" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)])


def _commands_among(found: list[str]) -> list[str]:
    starts = r"(\.venv/bin/|\w+=\S+ )*(megatron-fastmix [a-z]|bash |sbatch |torchrun |python )"
    return [command.partition(" #")[0].strip() for command in found if re.match(starts, command)]


def words_of(command: str) -> list[str]:
    """The words, without settings before them; what a reader fills in has a value."""
    text = re.sub(r"\bN\b", "8", command).replace("...", "").replace("…", "")
    words = shlex.split(text)
    while re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def check_ours(words: list[str], *, whole: bool) -> None:
    """A command line of ours is one that its verb's parser takes; of one in a sentence, which may
    leave things out, it knows the flags."""
    parser = argparse.ArgumentParser(prog="megatron-fastmix")
    verbs = parser.add_subparsers(dest="verb")
    add_verb(verbs, words[0], VERBS[words[0]])
    verb = verbs.choices[words[0]]
    if whole:
        args, rest = parser.parse_known_args(words)
        assert not rest or (hasattr(args, "overrides") and rest[0].startswith("--")), rest
    elif verb.get_default("overrides") is None:
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= verb._option_string_actions.keys()


ALL = [
    pytest.param(command, whole, id=f"{readme}-{command[:60]}")
    for readme in READMES
    for whole, find in ((True, commands), (False, named_commands))
    for command in dict.fromkeys(find((ROOT / readme).read_text()))
    if "VERB" not in command
]


@pytest.mark.parametrize(("command", "whole"), ALL)
def test_every_command_is_one_that_its_program_takes(command: str, whole: bool) -> None:
    program, *words = words_of(command)
    if program == "megatron-fastmix":
        check_ours(words, whole=whole)
    elif "megatron_fastmix.megatron" in words:
        ours = words[words.index("megatron_fastmix.megatron") + 1 :]
        if ours:
            _, rest = split_arguments(ours if whole else [*ours, "--fastmix-mixture=RUN"])
            assert any(word.endswith(".py") for word in rest)
    elif program in ("bash", "sbatch", "python"):
        script = next(word for word in words if not word.startswith("-"))
        assert (ROOT / script).exists(), script
        if script.endswith(".sh"):
            subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    else:
        assert program == "torchrun"


def texts(seed: int) -> str:
    """JSON lines of enough different words for a vocabulary of any size that a README names."""
    rng = random.Random(seed)
    known = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(12_000)]
    lines = (" ".join(rng.choices(known, k=120)) for _ in range(500))
    return "".join(f'{{"text": "{line}"}}\n' for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's commands find the files that they name."""
    path = tmp_path_factory.mktemp("readme")
    for seed, name in enumerate(("a", "b", "held_out")):
        (path / f"{name}.jsonl").write_text(texts(seed))
    (path / "data").mkdir()
    return path


def run(folder: Path, words: list[str]) -> str:
    """Runs a command line of ours in `folder`; returns what it printed."""
    settings = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_fastmix.cli", *words],
        cwd=folder,
        env=os.environ | settings | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def with_one_source_more(folder: Path) -> str:
    """Writes new.yaml, which knows a source that my.yaml does not; returns the run of my.yaml."""
    values = yaml.safe_load((folder / "my.yaml").read_text())
    earlier: str = values["run_dir"]
    for ending in ("bin", "idx"):
        shutil.copy(folder / f"data/a_text_document.{ending}", folder / f"data/c.{ending}")
    values["sources"].append({"name": "c", "path": "data/c"})
    (folder / "new.yaml").write_text(yaml.safe_dump(values | {"run_dir": "runs/new"}))
    return earlier


@pytest.mark.slow
def test_the_first_readmes_commands_run_in_their_order(folder: Path) -> None:
    """From text to a search of four steps; only the search is made smaller."""
    ran = []
    for body in blocks((ROOT / "README.md").read_text(), "", "bash"):
        for command in commands(f"```\n{body}```\n"):
            program, *words = words_of(command)
            if program != "megatron-fastmix":
                continue
            if words[0] == "search":
                if "--from" in words:
                    words[words.index("--from") + 1] = with_one_source_more(folder)
                run(folder, [*words, *SMALL, "--num-ranks=2"])
            elif words[0] == "plan":  # of a corpus of a page, init makes the batch of one GPU
                run(folder, [*words, "--global-batch-size=64"])
            else:
                run(folder, words)
            if words[0] == "preprocess":  # what later commands name
                for name in ("b", "held_out"):
                    other = [re.sub(r"(^|/)a(\.jsonl)?$", rf"\1{name}\2", w) for w in words]
                    run(folder, other)
            ran.append(words[0])
    assert {"train-tokenizer", "preprocess", "inspect", "search"} <= set(ran)
    config = yaml.safe_load((folder / "my.yaml").read_text())
    run_dir = folder / config["run_dir"]
    assert (run_dir / "mixture.json").exists()
    for command in named_commands((ROOT / "README.md").read_text()):
        program, *words = words_of(command)
        words = [str(run_dir) if word in ("RUN", "A", "B") else word for word in words]
        if program == "megatron-fastmix" and words[0] in ("report", "export") and len(words) > 1:
            run(folder, [*words, "--output", "out"] if "DIR" in words else words)


@pytest.mark.slow
def test_the_readmes_python_runs(make_run: Any) -> None:
    """Each block, with the names that its reader has: the mixture that it opens, and the batch."""
    found = [body for readme in READMES for body in blocks((ROOT / readme).read_text(), "python")]
    assert found
    for body in found:
        compile(body, "README.md", "exec")
        make_run(body)


@pytest.fixture
def make_run(search_values: dict, tmp_path: Path) -> Any:
    """A function: runs Python where every run folder that it names is of a finished search."""
    path = tmp_path / "search.yaml"
    search_values["run_dir"] = "run"
    path.write_text(yaml.safe_dump(search_values))

    def execute(body: str) -> None:
        for named in re.findall(r'"(runs/[^"]+)"', body):
            if not (tmp_path / named).exists():
                run(tmp_path, ["search", "--config", str(path), f"--run_dir={named}"])
        script = f"global_batch_size = 8\n{body}"
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    return execute
