"""Blends as Megatron reads them, checked by Megatron-core's own parser and builder."""

import json
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import get_blend_from_list

from megatron_fastmix.cli.main import main
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.megatron import command_line, data_args, per_split
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.rounding import round_weights
from megatron_fastmix.start.api import export as export_from_python
from megatron_fastmix.start.artifacts import write_run_artifacts


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=40), st.integers(2, 8))
def test_rounded_weights_sum_to_exactly_one_and_keep_their_order(values, decimals):
    weights = {str(i): value / sum(values) for i, value in enumerate(values)}
    rounded = {name: Fraction(text) for name, text in round_weights(weights, decimals).items()}
    assert sum(rounded.values()) == 1
    unit = Fraction(1, 10**decimals)
    for name, weight in weights.items():
        assert abs(rounded[name] - Fraction(weight)) <= unit * Fraction(1001, 1000)
    for one in weights:
        for two in weights:
            if weights[one] > weights[two]:
                assert rounded[one] >= rounded[two] - (weights[one] - weights[two] < 1e-12) * unit


def test_megatrons_parser_reads_every_form(make_mixture):
    blend = make_blend(make_mixture({"a": 0.7, "b": 0.299999, "c": 0.000001}))
    expected = (["/data/a", "/data/b"], [0.7, 0.3])
    assert get_blend_from_list(data_args(blend).split()) == expected
    flag, *words = command_line(blend).split()
    assert flag == "--data-path"
    assert get_blend_from_list(words) == expected
    splits = json.loads(per_split(blend))
    assert splits.keys() == {"train", "valid", "test"}
    assert get_blend_from_list(splits["train"]) == expected
    assert get_blend_from_list(splits["valid"]) == (["/data/target"], None)
    assert splits["test"] is None
    assert blend.left_out == ("c",)


def test_the_builder_trains_on_the_exported_blend(corpora, make_mixture):
    blend = make_blend(make_mixture({"forward": 0.75, "noise": 0.25}, folder=str(corpora)))
    splits = json.loads(per_split(blend))
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=32,
        blend_per_split=[get_blend_from_list(splits[key]) for key in ("train", "valid", "test")],
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [200, 10, 0], lambda: True, config)
    train, valid, test = builder.build()
    drawn = [int(train[i]["dataset_id"]) for i in range(200)]
    assert drawn.count(0) == pytest.approx(150, abs=1)
    assert len(valid) >= 10
    assert test is None


def test_white_space_in_a_path_is_refused_where_megatron_would_split_it(make_mixture, tmp_path):
    mixture = make_mixture({"a": 0.5, "b": 0.5}, folder="/my data")
    blend = make_blend(mixture)
    with pytest.raises(DataError, match="'/my data/a' has white space"):
        data_args(blend)
    # As a POSIX shell splits it.
    words = shlex.split(command_line(blend))
    assert get_blend_from_list(words[1:])[0] == ["/my data/a", "/my data/b"]
    assert get_blend_from_list(json.loads(per_split(blend))["train"])[0] == [
        "/my data/a",
        "/my data/b",
    ]
    files = write_run_artifacts(tmp_path, mixture)
    assert files.blend_txt is None
    assert files.blend_json.exists()


def test_a_run_folder_gets_mixture_blends_and_picture(tmp_path, make_mixture, make_metrics):
    make_metrics(tmp_path / "metrics.jsonl", ["a", "b"])
    files = write_run_artifacts(tmp_path, make_mixture({"a": 0.5, "b": 0.5}))
    assert files.blend_txt and files.blend_txt.read_text() == "0.5000 /data/a\n0.5000 /data/b\n"
    assert files.picture and files.picture.read_bytes().startswith(b"\x89PNG")
    assert files.report == tmp_path / "report" / "report.html"
    assert "The mixture to use" in files.report.read_text()
    # A result without outer steps must not be shown with another's picture.
    files = write_run_artifacts(tmp_path, make_mixture({"a": 0.5, "b": 0.5}, outer_steps=0))
    assert files.picture is None
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("blend.json", "blend.txt", "metrics.jsonl", "mixture.json", "report")
    ]


def test_a_path_that_megatron_would_strip_gets_no_blend_at_all(tmp_path, make_mixture):
    (tmp_path / "blend.txt").write_text("of an earlier run")
    files = write_run_artifacts(tmp_path, make_mixture({"a": 1.0}, folder=" data"))
    assert (files.blend_txt, files.blend_json) == (None, None)
    assert [file.name for file in tmp_path.iterdir()] == ["mixture.json"]


@pytest.fixture
def run_dir(tmp_path, make_mixture):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.6, "b": 0.4}))
    return tmp_path


def test_the_command_writes_to_standard_output_or_a_file(run_dir, tmp_path, capsys):
    assert main(["export", str(run_dir)]) == 0
    text = capsys.readouterr().out
    assert get_blend_from_list(text.split()) == (["/data/a", "/data/b"], [0.6, 0.4])
    output = tmp_path / "out" / "blend.txt"
    assert main(["export", str(run_dir), "--output", str(output)]) == 0
    assert output.read_text() == text


def test_the_command_names_what_it_leaves_out(tmp_path, make_mixture, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.9996, "b": 0.0004}))
    assert main(["export", str(tmp_path), "--decimals", "3"]) == 0
    output = capsys.readouterr()
    assert output.out == "1.000 /data/a\n"
    assert "left out, because the weight rounds to 0 at 3 decimals: b" in output.err


def test_the_tool_is_the_command(run_dir):
    tool = Path(__file__).parents[2] / "tools" / "convert_weights.py"
    call = [sys.executable, tool, run_dir, "--format"]
    done = subprocess.run([*call, "megatron-cli"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "--data-path 0.6000 /data/a 0.4000 /data/b\n")
    refused = subprocess.run([*call, "other"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("megatron-fastmix: --format: found 'other'")


def test_the_command_lists_its_formats(capsys):
    assert main(["export", "--format", "list"]) == 0
    text = capsys.readouterr().out
    for name in ("megatron-cli", "megatron-data-args", "megatron-per-split"):
        assert name in text


def test_the_command_refuses_wrong_arguments(run_dir, capsys):
    assert main(["export", str(run_dir), "--format", "megatorn"]) == 2
    assert "choose one of megatron-cli" in capsys.readouterr().err
    assert main(["export", str(run_dir / "nothing")]) == 2
    assert main(["export"]) == 2
    assert main(["export", str(run_dir), "--decimals", "0"]) == 2
    assert "use 1 to 12" in capsys.readouterr().err
    (run_dir / "file").write_text("")
    assert main(["export", str(run_dir), "--output", str(run_dir / "file" / "blend.txt")]) == 2
    assert "--output: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mixture.json", None),
        ("metrics.jsonl", "{}\n"),
        ("config.yaml", "sources: []\n"),
        ("report/report.html", "<html>"),
        ("checkpoints/step-00000001/logits.json", "{}"),
        ("stop", None),
        ("../search.yaml", "sources: []\ntargets: []\n"),
        ("../good.bin", "tokens"),
        ("../good.idx", "index"),
        ("../text.jsonl", "{}\n"),
    ],
)
def test_an_export_replaces_no_file_that_is_none(run_dir, name, content, capsys):
    run = run_dir / "run"
    run.mkdir()
    (run_dir / "mixture.json").rename(run / "mixture.json")
    output = run / name
    if content is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(content)
    before = output.read_bytes() if output.exists() else None
    for mixture in (run, run / "mixture.json"):
        assert main(["export", str(mixture), "--output", str(output)]) == 2
        assert f"--output: {output} is " in capsys.readouterr().err
        with pytest.raises(ConfigError, match="choose another file"):
            export_from_python(mixture, output=output)
    assert (output.read_bytes() if output.exists() else None) == before


@pytest.mark.parametrize("format", ["megatron-data-args", "nemo-1", "nemotron", "hf-datasets"])
@pytest.mark.parametrize("name", ["blend.txt", "blend.yaml", "phases/blend.json"])
def test_an_export_replaces_an_earlier_one(run_dir, name, format):
    for _ in range(2):
        call = ["export", str(run_dir), "--format", format, "--output", str(run_dir / name)]
        assert main(call) == 0


def test_an_unfinished_run_is_exported_only_on_request(tmp_path, make_mixture, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.6, "b": 0.4}, complete=False))
    assert main(["export", str(tmp_path)]) == 2
    assert "--allow-partial" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--allow-partial"]) == 0
