"""What the command line says before, beside and after its work."""

import argparse
import shlex
import subprocess
import sys

import numpy as np
import pytest

from megatron_fastmix.cli.examples import EXAMPLES
from megatron_fastmix.cli.main import VERBS, add_verb, main
from megatron_fastmix.config import OutputConfig, load_config
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.errors import DataError
from megatron_fastmix.lab.comparison.candidates import make_candidates, select
from megatron_fastmix.report.tracker_picture import progress_picture
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.run.events import CheckpointBegun, Opening, RunEnd
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.sinks import TerminalSink, TrackerSink
from megatron_fastmix.run.trackers import TensorBoard
from tests.unit.report_runs import write_search


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_examples_that_it_takes(name, capsys):
    parser = argparse.ArgumentParser(prog="megatron-fastmix")
    add_verb(parser.add_subparsers(dest="verb"), name, VERBS[name])
    assert EXAMPLES[name]
    for example in EXAMPLES[name]:
        args, rest = parser.parse_known_args([name, *shlex.split(example.replace("\\\n", " "))])
        assert not rest or (hasattr(args, "overrides") and rest[0].startswith("--"))
    with pytest.raises(SystemExit):
        main([name, "--help"])
    said = capsys.readouterr().out
    assert f"examples:\n  megatron-fastmix {name}" in said


def test_the_first_line_needs_no_torch(config_file):
    """Its import takes seconds on a machine that does nothing else."""
    code = (
        "import sys; from megatron_fastmix.config import load_config\n"
        "from megatron_fastmix.search.inputs import check_inputs\n"
        "from megatron_fastmix.start.first_line import first_line\n"
        "config = load_config(sys.argv[1]); print(first_line(config, check_inputs(config, 2), 2))\n"
        "assert 'torch' not in sys.modules and 'megatron.core' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(config_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    config = load_config(config_file)
    sources, steps = len(config.sources), config.training.train_iters
    assert done.stdout.startswith(f"{sources} sources, 1 target; ")
    assert f" parameters; 2 ranks; {steps} steps, {config.outer_steps} outer step" in done.stdout
    assert done.stdout.endswith("; loading\n")


def test_a_resumed_search_says_from_where(config_file, capsys):
    config = load_config(config_file)
    for step, said in ((0, ""), (38, "resumed from step 38\n")):
        sink = TerminalSink(config, step)
        sink.receive(Opening(step=step, weights={"a": 1.0}))
        sink.close()
        assert capsys.readouterr().out == said


def test_a_path_that_is_not_there_says_what_is(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a_text_document", "books_text_document"):
        for suffix in (".bin", ".idx"):
            (folder / f"{name}{suffix}").touch()
    monkeypatch.chdir(tmp_path)
    for given, hint in (
        ("data/a", f"there is data/a_text_document (looked in {folder})"),
        ("data/boks_text_document", "there is data/books_text_document"),
        ("data/a_text_document.bin", "use data/a_text_document"),
        ("data/zzz", "data has the datasets a_text_document, books_text_document"),
    ):
        with pytest.raises(DataError) as caught:
            inspect_indexed_dataset(given)
        assert hint in str(caught.value), given


def test_a_share_may_be_a_percentage_and_many_epochs_are_remarked_on(
    tmp_path, make_mixture, capsys
):
    write_mixture(tmp_path / "mixture.json", make_mixture({"cpp": 0.5, "web": 0.5}))
    assert main(["export", str(tmp_path), "--format", "megatron-cli", "--set", "cpp=20%"]) == 0
    said = capsys.readouterr()
    assert "0.2000 /data/cpp 0.8000 /data/web" in said.out
    assert "more than 4 epochs" not in said.err
    # 5,000 tokens each.
    flags = ["--format", "megatron-cli", "--token-budget", "270K"]
    assert main(["export", str(tmp_path), *flags]) == 0
    said = capsys.readouterr().err
    assert "more than 4 epochs in 270,000 tokens: cpp 27, web 27" in said
    assert main(["export", str(tmp_path), "--token-budget", "40K", "--max-epochs", "4"]) == 0
    assert "more than 4 epochs" not in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--set", "cpp=some%"]) == 2
    assert "20%" in capsys.readouterr().err


def test_exported_paths_are_those_of_the_machine_that_trains(tmp_path, make_mixture, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.5, "b": 0.5}))
    flags = ["--format", "megatron-cli", "--path-map", "/data=/lustre"]
    assert main(["export", str(tmp_path), *flags]) == 0
    assert capsys.readouterr().out == "--data-path 0.5000 /lustre/a 0.5000 /lustre/b\n"


def test_relative_paths_of_another_folder_are_said(tmp_path, make_mixture, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.5, "b": 0.5}, folder="data"))
    assert main(["export", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "relative to the folder that the search ran in, such as data/a" in said
    assert main(["export", str(tmp_path), "--path-map", "/x=/y"]) == 2
    assert "--path-map: data/a is relative" in capsys.readouterr().err


def test_a_blend_is_one_of_the_mixtures_that_are_compared():
    tokens = {"a": 100, "b": 300}
    learned = {"learned": ({"a": 0.9, "b": 0.1}, 1.0)}
    blends = {"capped": {"a": 0.4, "b": 0.6}}
    found = make_candidates(tokens, learned, random_draws=0, draw_seed=1, blends=blends)
    (blend,) = select(found, ["blend"])
    assert (blend.name, blend.weights) == ("blend:capped", {"a": "0.4000", "b": "0.6000"})
    assert select(found, ["blend:capped"]) == [blend]


def test_trackers_get_a_picture_of_weights_and_advantages(tmp_path, config_file):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunFolder(write_search(tmp_path / "run", ["web", "code", "maths"]))
    pixels = progress_picture(run.metrics)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.std() > 1
    assert progress_picture(tmp_path / "none.jsonl") is None
    board = TensorBoard(tmp_path / "board", 0, 8)
    sink = TrackerSink(board, load_config(config_file), run, progress_picture)
    sink.receive(CheckpointBegun(step=0, path="p", seconds=0.1))  # no tenth of the search is done
    sink.receive(RunEnd(step=400, complete=True, training_flops=None))
    sink.close()
    found = events.EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    (image,) = found.Images("fastmix/weights and advantages")
    assert (image.step, image.width, image.height) == (400, pixels.shape[1], pixels.shape[0])
    assert OutputConfig().tensorboard_dir is None  # nobody gets one who did not ask
