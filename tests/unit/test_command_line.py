"""What a user sees of wrong input: one message, exit code 2, before any rank starts."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_fastmix.cli.main import VERBS, add_verb, join_flags, main
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from tests.conftest import write_dataset


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    """Fails the test when a rank would be started."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.fixture
def search(search_values, tmp_path, capsys):
    """Runs `search` on the changed values; returns the exit code and the message."""

    def run(*flags: str, **changes) -> tuple[int, str]:
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump({**search_values, **changes}))
        code = main(["search", "--config", str(path), *flags])
        return code, capsys.readouterr().err

    return run


def test_a_good_configuration_gets_as_far_as_starting(search):
    with pytest.raises(AssertionError, match="a process was started"):
        search()


def test_pods_of_kubernetes_are_no_ranks(search, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(AssertionError, match="a process was started"):
        search()
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, message = search()
    assert code == 2
    assert "LOCAL_RANK: is not set beside RANK 0 of WORLD_SIZE 2" in message


def copied(corpora: Path, tmp_path: Path, name: str) -> Path:
    for suffix in (".bin", ".idx"):
        shutil.copy(corpora / f"{name}{suffix}", tmp_path / f"{name}{suffix}")
    return tmp_path / name


def with_source(search_values: dict, prefix: Path) -> list[dict]:
    return [{"name": "changed", "path": str(prefix)}, *search_values["sources"][1:]]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_dataset_is_refused(search, search_values, corpora, tmp_path, suffix, damage):
    prefix = copied(corpora, tmp_path, "forward")
    file = Path(f"{prefix}{suffix}")
    if damage == "missing":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    code, message = search(sources=with_source(search_values, prefix))
    assert code == 2
    assert str(file) in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("text", ['{"text": "a"}\n{"text": "b"}\n', '{"text": "a"}', "[]"])
def test_somebody_elses_json_beside_a_dataset_does_not_matter(
    search, search_values, corpora, tmp_path, text
):
    prefix = copied(corpora, tmp_path, "forward")
    Path(f"{prefix}.json").write_text(text)
    with pytest.raises(AssertionError, match="a process was started"):
        search(sources=with_source(search_values, prefix))


def test_a_source_shorter_than_a_sample_is_refused(search, search_values, tmp_path):
    write_dataset(tmp_path / "short", [[1, 2, 3]], 256)
    code, message = search(sources=with_source(search_values, tmp_path / "short"))
    assert code == 2
    assert "changed" in message
    assert "found 3 tokens, fewer than one sample of 33" in message


def test_a_target_without_tokens_is_refused(search, tmp_path):
    write_dataset(tmp_path / "empty", [], 256)
    code, message = search(targets=[{"name": "target", "path": str(tmp_path / "empty")}])
    assert code == 2
    assert str(tmp_path / "empty") in message


def test_a_vocabulary_that_does_not_match_is_refused(search, search_values, tmp_path):
    too_large = load_tokenizer("ByteLevelTokenizer").vocab_size + 7
    write_dataset(tmp_path / "other", [[1, too_large] * 40], 60_000)
    code, message = search(sources=with_source(search_values, tmp_path / "other"))
    assert code == 2
    assert str(too_large) in message
    assert str(tmp_path / "other") in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--global-batch-size", "10"], "it must be a multiple of micro_batch_size 3 times"),
        (
            ["--estimator=exact"],
            "choose one of one_pass, finite_difference, per_source, last_layer",
        ),
        (["--pipeline-model-parallel-size=2"], "ZeRO 2 and 3 exclude pipelines"),
        (["--tensor-model-parallel-size=2", "--num-ranks=3"], "must divide the number of ranks"),
        (["--seq_len=3"], "seq_len: unknown key"),
        (["--tokenizer-type=Nothing"], "Nothing"),
        (["loose"], "overrides have the form --key=value"),
        (["--num-ranks", "3"], "it must be a multiple of micro_batch_size 3 times"),
    ],
)
def test_a_wrong_flag_is_refused(search, flags, message):
    code, found = search(*flags)
    assert code == 2
    assert message in found
    assert "Traceback" not in found


def test_one_source_is_refused(search, search_values):
    code, message = search(sources=search_values["sources"][:1])
    assert code == 2
    assert "a mixture needs at least 2 sources" in message


def test_a_run_folder_of_another_search_is_refused(search, search_values):
    with pytest.raises(AssertionError):
        search()
    code, message = search("--training.lr=1e-3")
    assert code == 2
    assert "training.lr: was 0.003, now 0.001" in message
    assert search_values["run_dir"] in message
    with pytest.raises(AssertionError):  # what moves no result may change
        search("--output.log_interval=1")


def test_the_run_folder_says_whose_text_it_rests_on(search, search_values, tmp_path):
    text = tmp_path / "new.jsonl"
    text.write_text(json.dumps({"text": "some words " * 20}) + "\n")
    prefix = tmp_path / "new"
    flags = ["--input", str(text), "--output-prefix", str(prefix), "--licence", "CC0-1.0"]
    assert main(["preprocess", *flags, "--tokenizer-type", "ByteLevelTokenizer"]) == 0
    with pytest.raises(AssertionError):
        search(sources=with_source(search_values, Path(f"{prefix}_text_document")))
    entries = json.loads((Path(search_values["run_dir"]) / "sources.json").read_text())
    assert [entry["name"] for entry in entries] == ["changed", "backward", "noise", "target"]
    assert entries[0]["licence"] == "CC0-1.0"
    assert entries[-1]["kind"] == "target"


def test_a_run_folder_that_cannot_be_made_is_refused(search, tmp_path):
    (tmp_path / "file").write_text("")
    code, message = search(run_dir=str(tmp_path / "file/run"))
    assert code == 2
    assert "run_dir: cannot write to" in message
    assert "a part of that path is a file, not a folder; mend that, or choose another" in message


def test_malformed_json_lines_are_refused_with_file_and_line(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n{bad\n")
    code = main(
        [
            *("preprocess", "--input", str(path), "--output-prefix", str(tmp_path / "out")),
            *("--tokenizer-type", "ByteLevelTokenizer"),
        ]
    )
    assert code == 2
    assert f"{path}:2" in capsys.readouterr().err


def test_an_unknown_verb_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serach"])
    assert caught.value.code == 2
    assert "search" in capsys.readouterr().err


def test_a_flags_home_folder_is_the_users(search, search_values, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    assert main(["init", "--template", "pretrain_15m", "--output=~/my.yaml"]) == 0
    with pytest.raises(AssertionError, match="a process was started"):
        search("--token-budget=~", "--run_dir=~/run")
    assert (tmp_path / "home/my.yaml").exists()
    assert (tmp_path / "home/run/config.yaml").exists()
    assert not Path("~").exists()


def test_flags_and_their_values_are_joined():
    assert join_flags(["--a", "1", "--b=2", "--c"]) == ["--a=1", "--b=2", "--c"]


def test_an_on_off_flag_needs_no_value_as_with_megatron(search, search_values):
    flags = ["--eod-mask-loss", "--data.packing", "--fastmix-per-target", "--train-iters"]
    assert join_flags(flags) == [*(f"{flag}=true" for flag in flags[:3]), "--train-iters"]
    with pytest.raises(AssertionError, match="a process was started"):
        search("--eod-mask-loss", "--seed", "2")
    written = yaml.safe_load((Path(search_values["run_dir"]) / "config.yaml").read_text())
    assert written["data"]["eod_mask_loss"] is True


@pytest.mark.parametrize("name", VERBS)
def test_a_flag_that_is_given_twice_loses_no_value(name, capsys):
    parser = argparse.ArgumentParser()
    add_verb(parser.add_subparsers(), name, VERBS[name])
    verb = parser._subparsers._group_actions[0].choices[name]
    for needed in (*verb._actions, *verb._mutually_exclusive_groups):
        needed.required = False
    words = [name, *(a_value(action) for action in verb._actions if not action.option_strings)]
    for action in verb._actions:
        if not action.option_strings or action.nargs == 0:
            continue
        twice = [action.option_strings[0], a_value(action)] * 2
        try:
            found = parser.parse_args([*words, *twice])
        except SystemExit as error:
            assert error.code == 2
            flag = "/".join(action.option_strings)
            assert f"argument {flag}: given twice" in capsys.readouterr().err
        else:
            value = getattr(found, action.dest)
            assert isinstance(value, list)
            assert len(value) == 2


def a_value(action: argparse.Action) -> str:
    return str(next(iter(action.choices))) if action.choices else "1"


def test_datasets_of_two_input_flags_are_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    inputs = [word for name in ("a", "b") for word in ("--input", str(tmp_path / f"{name}.jsonl"))]
    prefix = tmp_path / "out"
    tokenizer = ["--tokenizer-type", "ByteLevelTokenizer"]
    assert main(["preprocess", *inputs, "--output-prefix", str(prefix), *tokenizer]) == 0
    assert inspect_indexed_dataset(f"{prefix}_text_document").documents == 2
