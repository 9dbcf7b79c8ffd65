"""Blends in the scripts that people start a training with."""

import os

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.export.blend_weights import read_blend_weights
from megatron_fastmix.export.import_blend import read_blend


@pytest.mark.parametrize(
    "text",
    [
        "run --data-path 0.3 /d/a 0.7 /d/b # a comment\nexport OMP_NUM_THREADS=1",
        "run --data-path 0.3 /d/a 0.7 /d/b; # it's done\necho done",
        "ARGS=(\n  --data-path\n  0.3 /d/a\n  # 0.2 /d/c \\\n  0.7 /d/b\n)",
        "ARGS=(\n  # --data-path 1 /d/c \\\n  --data-path 0.3 /d/a 0.7 /d/b\n)",
        "# run \\\n#  --data-path 1 /d/c \\\nrun \\\n  --data-path 0.3 /d/a 0.7 /d/b",
        "if [ $# -lt 1 ]; then exit; fi\nrun \"a # b\" 'c # d' --data-path 0.3 /d/a 0.7 /d/b",
    ],
)
def test_comments_are_a_shells(tmp_path, text):
    (tmp_path / "run.sh").write_text(text)
    assert read_blend(tmp_path / "run.sh") == {"/d/a": 0.3, "/d/b": 0.7}


def test_a_number_sign_within_a_path_is_no_comment(tmp_path):
    (tmp_path / "run.sh").write_text("run --data-path 0.3 /d/c#_text 0.7 /d/b --bf16")
    assert read_blend(tmp_path / "run.sh") == {"/d/c#_text": 0.3, "/d/b": 0.7}


@pytest.mark.parametrize(
    "text",
    [
        "python train.py --config-path=c \\\n model.data.data_prefix=[0.3,/d/a,0.7,/d/b] \\\n x=1",
        'python train.py trainer.devices=8 "model.data.data_prefix=[0.3, /d/a, 0.7, /d/b]"',
        "train.py '+model.data.data_prefix={train:[0.3,/d/a,0.7,/d/b],test:[/d/t]}' | tee log",
        "torchrun run_recipe.py 'dataset.blend=[[/d/a,/d/b],[0.3,0.7]]' train.train_iters=9",
        "python -m nemo_run data.paths=\\[0.3,/d/a,0.7,/d/b\\]  # don't",
    ],
)
def test_overrides_in_a_command(tmp_path, text):
    (tmp_path / "run.sh").write_text(f"#!/bin/bash\n{text}\n")
    assert read_blend(tmp_path / "run.sh") == {"/d/a": 0.3, "/d/b": 0.7}


def test_a_variable_without_braces_is_named(tmp_path, capsys):
    (tmp_path / "run.sh").write_text("run --data-path 0.3 $D/a 0.7 /d/b")
    assert main(["import", str(tmp_path / "run.sh")]) == 0
    assert "note: $D/a names a variable" in capsys.readouterr().err


def test_a_blend_through_a_link_is_of_the_same_sources(
    tmp_path, corpora, config_file, make_mixture, capsys
):
    (tmp_path / "link").symlink_to(corpora)
    blend = tmp_path / "blend.txt"
    words = f"1 {tmp_path}/link/noise 2 {tmp_path}/link/backward 5 {tmp_path}/link/forward"
    blend.write_text(words)
    assert main(["import", str(blend), "--config", str(config_file)]) == 0
    section = yaml.safe_load(capsys.readouterr().out)
    assert section == {"mixture": {"initial_weights": [0.625, 0.25, 0.125]}}
    mixture = make_mixture({"forward": 0.5, "noise": 0.5}, folder=str(corpora))
    # One dataset by two names: the second must not take the place of the first.
    there = os.path.join(corpora, "forward")
    blend.write_text(f"1 {tmp_path}/link/noise 1 {tmp_path}/link/forward 2 {there}")
    assert read_blend_weights(blend, mixture) == {"forward": 0.75, "noise": 0.25}
