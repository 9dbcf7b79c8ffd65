"""What is read is never written over, however the two paths are spelled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus import dataset_work, sentencepiece_training
from megatron_fastmix.corpus.dataset_output import DatasetOutput
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.reading.inputs import expand_inputs
from megatron_fastmix.corpus.sentencepiece_training import SentencePieceConfig, train_sentencepiece
from megatron_fastmix.errors import ConfigError, DataError

TEXT = '{"text": "some words of a document"}\n'
PAIR = '{"question": "q", "answer": "a"}\n'


def config(*datasets: dict, model: str | None = None) -> PreprocessConfig:
    return PreprocessConfig(
        tokenizer=TokenizerConfig(
            tokenizer_type="SentencePieceTokenizer" if model else "ByteLevelTokenizer",
            tokenizer_model=model,
        ),
        datasets=tuple(DatasetConfig(**dataset) for dataset in datasets),
        workers=1,
    )


def silent(line: str) -> None:
    pass


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with text in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "web.json").write_text(TEXT)
    (tmp_path / "other.jsonl").write_text(TEXT)
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "data" / "web.json")
    os.link(tmp_path / "data" / "web.json", tmp_path / "hard.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "read",
    [
        "data/web.json",
        "./data/../data/web.json",
        "linked/web.json",
        "link.jsonl",
        "hard.jsonl",
        "data",
        "linked",
        "d*/*.json",
        "**/web.json",
    ],
)
@pytest.mark.parametrize("prefix", ["data/web", "linked/web", "{cwd}/data/web"])
def test_a_manifest_is_not_written_over_an_input(folder: Path, read: str, prefix: str) -> None:
    before = snapshot(folder)
    own = {"prefix": prefix.format(cwd=folder), "input": (read,)}
    with pytest.raises(ConfigError, match=r"is both input and output"):
        preprocess(config(own), silent)
    assert snapshot(folder) == before
    # Nor over the input of another dataset, whichever comes first.
    first = {"prefix": own["prefix"], "input": ("other.jsonl",)}
    second = {"prefix": "out", "input": (read,), "held_out": True}
    for datasets in ((first, second), (second, first)):
        with pytest.raises(ConfigError, match=r"is both input and output"):
            preprocess(config(*datasets), silent)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.bin", {}),
        ("out.idx", {}),
        ("out.json", {}),
        ("out.journal.json", {}),
        ("out_loss_mask.bin", {"record_type": "question_answer", "input_format": "jsonl"}),
        ("out_train.json", {"split": "8,1,1"}),
        ("out_test.json", {"split": "8,1,1"}),
        ("out.journal.json", {"split": "8,1,1"}),
        ("out_valid.digests", {"split": "8,1,1"}),
        ("out.digests", {"held_out": True}),
    ],
)
def test_nor_is_any_other_output(folder: Path, name: str, options: dict) -> None:
    (folder / name).write_text(PAIR + TEXT)
    before = snapshot(folder)
    with pytest.raises(ConfigError, match=f"{name}: is both input and output"):
        preprocess(
            config({"prefix": "out", "input": (name,), "input_format": "lines"} | options), silent
        )
    assert snapshot(folder) == before


def test_nor_over_the_tokenizer_the_template_and_the_configuration(folder: Path) -> None:
    (folder / "x.jsonl").write_text(TEXT)
    (folder / "model.json").write_text("x")
    (folder / "chat.json").write_text("{}")
    for prefix, options in (
        ("model", {}),
        ("chat", {"record_type": "messages", "chat_template": "chat.json"}),
    ):
        with pytest.raises(ConfigError, match=f"{prefix}.json: is both"):
            preprocess(
                config({"prefix": prefix, "input": ("x.jsonl",)} | options, model="model.json"),
                silent,
            )
    values = {
        "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
        "datasets": [{"prefix": "own", "input": ["x.jsonl"]}],
    }
    (folder / "own.json").write_text(yaml.safe_dump(values))
    before = snapshot(folder)
    assert main(["preprocess", "--config", "own.json"]) == 2
    assert snapshot(folder) == before


def test_two_datasets_do_not_share_a_file(folder: Path) -> None:
    (folder / "p.jsonl").write_text(PAIR)
    rows = {"prefix": "a", "input": ("p.jsonl",), "record_type": "question_answer"}
    with pytest.raises(ConfigError, match=r"a_loss_mask.* written twice"):
        preprocess(config(rows, {"prefix": "a_loss_mask", "input": ("p.jsonl",)}), silent)
    with pytest.raises(ConfigError, match="written twice"):
        preprocess(
            config(
                {"prefix": "data/a", "input": ("p.jsonl",)},
                {"prefix": "linked/a", "input": ("p.jsonl",)},
            ),
            silent,
        )


@pytest.mark.parametrize("input_format", ["auto", "jsonl"])
@pytest.mark.parametrize("options", [{}, {"split": "8,1,1"}, {"held_out": True}])
def test_a_folder_that_holds_the_outputs_is_up_to_date(
    tmp_path: Path, input_format: str, options: dict
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{n} words"}}\n' for n in range(40)))
    prefix = str(tmp_path / "web")
    for read in (str(tmp_path), f"{tmp_path}/*"):
        dataset = {"prefix": prefix, "input": (read,), "input_format": input_format} | options
        preprocess(config(dataset), silent)
        said: list[str] = []
        preprocess(config(dataset), said.append)
        assert all("up to date" in line for line in said)


def test_what_an_interrupted_run_left_in_the_folder_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text(PAIR * 40)
    dataset = {
        "prefix": str(tmp_path / "web"),
        "input": (str(tmp_path),),
        "input_format": "jsonl",
        "record_type": "question_answer",
        "held_out": True,
    }
    monkeypatch.setattr(dataset_work, "JOURNAL_SECONDS", 0.0)

    def finish(self: DatasetOutput, **facts: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DatasetOutput, "finish", finish)
        preprocess(config(dataset), silent)
    assert (tmp_path / "web.journal.json").exists()
    said: list[str] = []
    (manifest,) = preprocess(config(dataset), said.append)
    assert "continuing" in said[0]
    assert manifest.documents == 40


def test_a_users_own_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(TEXT)
    (tmp_path / "SOURCES.json").write_text('{"text": "mine"}')
    (tmp_path / "b.journal.json").write_text(json.dumps({"text": "mine", "format": "manifest"}))
    assert len(expand_inputs([str(tmp_path)])) == 3


def test_a_manifest_that_is_named_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(TEXT)
    preprocess(config({"prefix": str(tmp_path / "a"), "input": (str(tmp_path),)}), silent)
    with pytest.raises(DataError, match="no text, but a file that an earlier run wrote"):
        expand_inputs([str(tmp_path / "a.json")])


def test_training_a_tokenizer_writes_over_no_input(tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": f"some words {n} of text"}) + "\n" for n in range(300))
    (tmp_path / "in.jsonl").write_text(text)
    (tmp_path / "tok.json").write_text(text)
    settings = SentencePieceConfig(vocab_size=285)
    for output in ("in.jsonl", "tok.json", "tok"):  # `tok` has its record in tok.json
        with pytest.raises(ConfigError, match="is both input and output"):
            train_sentencepiece([tmp_path], tmp_path / output, settings)
    assert (tmp_path / "in.jsonl").read_text() == (tmp_path / "tok.json").read_text() == text
    # Beside its own text it is trained once, and the text is all that was read.
    output = tmp_path / "new.json"
    assert train_sentencepiece([tmp_path], output, settings)
    assert not train_sentencepiece([tmp_path], output, settings)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), DataError("a.jsonl:2: malformed JSON")])
def test_what_ends_the_reading_of_a_tokenizers_text_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def documents(path: Path, json_key: str) -> Iterator[str]:
        yield "some words of text"
        raise raised

    monkeypatch.setattr(sentencepiece_training, "read_documents", documents)
    (tmp_path / "in.jsonl").write_text('{"text": "some words"}\n')
    with pytest.raises(type(raised)) as found:
        train_sentencepiece(
            [tmp_path / "in.jsonl"], tmp_path / "t.model", SentencePieceConfig(vocab_size=285)
        )
    assert found.value is raised


@pytest.mark.parametrize("name", ["foreign.model", "notes.txt"])
def test_training_a_tokenizer_writes_over_no_file_of_another(folder: Path, name: str) -> None:
    text = "".join(json.dumps({"text": f"some words {n} of text"}) + "\n" for n in range(300))
    (folder / "in.jsonl").write_text(text)
    (folder / name).write_text("what a user has")
    before = snapshot(folder)
    command = ["train-tokenizer", "--input", "in.jsonl", "--vocab-size", "285"]
    assert main([*command, "--tokenizer-model", name]) == 2
    assert snapshot(folder) == before
    for size in ("285", "286"):  # our own is trained anew
        assert main([*command[:-1], size, "--tokenizer-model", "own.model"]) == 0


def test_nor_over_a_json_file_that_no_run_wrote(folder: Path) -> None:
    own = config({"prefix": "mine", "input": ("other.jsonl",)})
    text = '{"text": "what the user wrote"}\n'
    Path("mine.json").write_text(text)
    with pytest.raises(ConfigError, match=r"mine.json: is there, and no file of an earlier run"):
        preprocess(own, silent)
    assert Path("mine.json").read_text() == text and not Path("mine.bin").exists()
    Path("mine.json").unlink()
    preprocess(own, silent)
    whole = Path("mine.json").read_text()
    for damaged in (whole[: len(whole) // 2], whole.replace("megatron_fastmix.manifest", "other")):
        Path("mine.json").write_text(damaged)
        preprocess(own, silent)
        assert Path("mine.json").read_text() == whole


@pytest.mark.parametrize("name", ["mine.bin", "mine.idx", "mine_loss_mask.bin"])
def test_nor_over_a_file_of_no_dataset(folder: Path, name: str) -> None:
    Path("pairs.jsonl").write_text(PAIR)
    own = config({"prefix": "mine", "input": ("pairs.jsonl",), "record_type": "question_answer"})
    Path(name).write_bytes(b"what the user has")
    before = snapshot(folder)
    with pytest.raises(ConfigError, match=f"{name}: is there, and no file of an earlier run"):
        preprocess(own, silent)
    assert snapshot(folder) == before
    Path(name).unlink()
    preprocess(own, silent)
    whole = snapshot(folder)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"damaged")):
        damage(Path("mine.idx"))  # the manifest tells whose the others are
        preprocess(own, silent)
        assert snapshot(folder) == whole
    # Nor does Megatron's own keep a dataset from being made.
    Path("mine.json").unlink()
    preprocess(own, silent)
    assert snapshot(folder) == whole


@pytest.mark.parametrize("options", [{}, {"split": "8,1,1"}])
@pytest.mark.parametrize("stopped_at", range(1, 5))
def test_a_run_that_stopped_between_two_names_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int, options: dict
) -> None:
    pairs = [{"question": f"q{n}", "answer": "a"} for n in range(40)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    dataset = {"prefix": "web", "input": ("pairs.jsonl",), "record_type": "question_answer"}
    own = config(dataset | options)
    replace, names = os.replace, []

    def stop(source: str, target: str) -> None:
        names.append(target)
        if sum(str(name).endswith((".bin", ".idx")) for name in names) == stopped_at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("megatron_fastmix.corpus.indexed.writer.os.replace", stop)
        preprocess(own, silent)
    manifests = preprocess(own, silent)
    assert sum(manifest.documents for manifest in manifests) == 40


def test_nor_where_a_folder_is(folder: Path) -> None:
    Path("out.idx").mkdir()
    with pytest.raises(ConfigError, match=r"out.idx: is a folder"):
        preprocess(config({"prefix": "out", "input": ("other.jsonl",)}), silent)
    assert not Path("out.bin").exists()


def test_nor_below_a_file(folder: Path) -> None:
    for prefix in ("other.jsonl/out", "other.jsonl/below/out"):
        with pytest.raises(ConfigError, match="cannot write: a part of that path is a file, not"):
            preprocess(config({"prefix": prefix, "input": ("other.jsonl",)}), silent)
