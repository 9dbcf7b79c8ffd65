"""The demo corpora, as far as they go without a network."""

import gzip
import json
import zipfile

import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import DataError
from megatron_fastmix.lab.demo import answers as demo_answers
from megatron_fastmix.lab.demo import demo
from megatron_fastmix.lab.demo import documents as demo_documents
from megatron_fastmix.lab.demo import wheels as demo_wheels


def test_a_wheel_with_another_hash_is_refused(tmp_path):
    pin = demo_wheels.PINNED_WHEELS["awscli"]
    (tmp_path / pin.file_name).write_bytes(b"not that wheel")
    with pytest.raises(DataError, match=rf"{pin.file_name}: sha256 is .* {pin.sha256}"):
        demo_wheels.fetch_wheel("awscli", tmp_path)


def test_a_failed_download_says_what_pip_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"awscli==1\.40\.0: pip cannot download"):
        demo_wheels.fetch_wheel("awscli", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_python_files_are_the_standard_library_without_tests():
    names = [name for name, _ in demo_documents.python_files()]
    assert "argparse.py" in names
    assert not [name for name in names if name.startswith(("test/", "site-packages/"))]


@pytest.mark.slow
def test_docstrings_carry_their_qualified_names():
    documents = dict(demo_documents.sympy_docstrings())
    assert "prime" in documents["sympy.ntheory.primetest.isprime"]


def test_examples_come_from_the_wheel(tmp_path):
    wheel = tmp_path / "awscli.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("awscli/examples/s3/ls.rst", "list")
        archive.writestr("awscli/examples/s3/other.txt", "no")
        archive.writestr("awscli-1.dist-info/METADATA", "Name: awscli\nLicense: Apache\n\ntext\n")
    assert list(demo_documents.awscli_examples(wheel)) == [("awscli/examples/s3/ls.rst", "list")]
    assert demo_documents.wheel_licence(wheel) == "Apache"


def test_sampling_keeps_groups_together_drops_duplicates_and_respects_the_cap():
    documents = [(f"group {n % 50}", f"text {n} " * 20) for n in range(500)]
    chosen = demo._sample([*documents, *documents], 10**9)
    assert sorted(text for _, text in chosen) == sorted(text for _, text in documents)
    positions = {}
    for position, text in chosen:
        positions.setdefault(int(text.split()[1]) % 50, set()).add(position)
    assert all(len(group) == 1 for group in positions.values())
    assert len(set.union(*positions.values())) == 50
    capped = demo._sample(documents, 20_000)
    assert 18_000 < sum(len(text) for _, text in capped) <= 20_000
    assert set(capped) < set(chosen)


def test_build_is_idempotent_and_repairs_damage(tmp_path, monkeypatch):
    local = tuple(source for source in demo.SOURCES if source.name == "python")
    monkeypatch.setitem(demo.DEMOS, "text", demo.Demo(sources=local, target="problems"))
    files, made = demo.build_demo(tmp_path, scale=0.1)
    assert made
    assert {file.name for file in files} == {"python", "python_heldout"}
    assert sum(file.text_bytes for file in files) <= 800_000
    lines = (tmp_path / "python.jsonl").read_text().splitlines()
    assert len(lines) == files[0].documents
    assert set(json.loads(lines[0])) == {"text"}
    assert demo.build_demo(tmp_path, scale=0.1) == (files, False)
    assert demo.read_provenance(tmp_path) == files
    (tmp_path / "python.jsonl").write_text("damaged")
    assert demo.build_demo(tmp_path, scale=0.1) == (files, True)
    assert demo.build_demo(tmp_path, scale=0.1) == (files, False)
    assert "PSF-2.0" in demo.format_table(files)


def test_a_users_files_stay_and_an_interrupted_demo_goes_on(tmp_path, monkeypatch, capsys):
    two = tuple(source for source in demo.SOURCES if source.name in ("python", "awscli"))
    monkeypatch.setitem(demo.DEMOS, "text", demo.Demo(sources=two, target="problems"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    call = ["demo", "--scale", "0.001", "--output"]
    for name in ("python.jsonl", "awscli_heldout.jsonl", "SOURCES.json"):
        mine = tmp_path / name.partition(".")[0] / name
        mine.parent.mkdir()
        mine.write_text('{"text":"my own python corpus"}')
        assert main([*call, str(mine.parent)]) == 2
        assert f"--output: {mine} is there" in capsys.readouterr().err
        assert mine.read_text() == '{"text":"my own python corpus"}'
        assert list(mine.parent.iterdir()) == [mine]
    # The wheel of the second source cannot be fetched, so the first one's files are there alone.
    out = tmp_path / "out"
    for _ in range(2):
        assert main([*call, str(out)]) == 2
        assert "pip cannot download" in capsys.readouterr().err
        assert (out / "python.jsonl").exists()
        with pytest.raises(DataError, match="megatron-fastmix demo"):
            demo.read_provenance(out)
    monkeypatch.setitem(demo.DEMOS, "text", demo.Demo(sources=two[:1], target="problems"))
    assert main([*call, str(out)]) == 0
    assert demo.read_provenance(out)[0].file == "python.jsonl"


def test_missing_provenance_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="megatron-fastmix demo"):
        demo.read_provenance(tmp_path)


def test_rows_of_the_fine_tuning_demo_come_from_the_wheels(tmp_path):
    problem = {"task_description": "Add.", "input_output_spec": "a, b", "code_sample": "a + b"}
    function = {"name": "f", "parameters": {}}
    asked = {"id": "1", "question": [[{"role": "user", "content": "Go"}]], "function": [function]}
    long = asked | {"id": "2", "function": [{"name": "g" * 2000}]}
    truth = [{"f": {"x": [1, 2], "unit": ["", "m"], "none": []}}, {"f": {"x": ["a"]}}]
    answers = [{"id": "1", "ground_truth": truth}, {"id": "2", "ground_truth": truth[1:]}]
    wheel = tmp_path / "all.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "reasoning_gym/data/codeio.jsonl.gz", gzip.compress(json.dumps(problem).encode())
        )
        for category in (*demo_answers._SINGLE_TURN, *demo_answers._LIVE):
            rows = [asked, long] if category == "live_simple" else []
            for folder, lines in (("", rows), ("possible_answer/", answers if rows else [])):
                archive.writestr(
                    f"bfcl_eval/data/{folder}BFCL_v4_{category}.json",
                    "".join(json.dumps(line) + "\n" for line in lines),
                )
        chat = "conversations:\n- - Hello\n  - Hi\n- - alone\n"
        archive.writestr("chatterbot_corpus/data/english/greetings.yml", chat)
        archive.writestr("chatterbot_corpus/data/french/salut.yml", chat.replace("Hello", "Salut"))

    def rows_of(name):
        return [json.loads(row) for _, row in demo_answers.ANSWER_READERS[name](wheel)]

    assert rows_of("code") == [{"question": "Add.\n\na, b", "answer": "a + b"}]
    assert rows_of("calls") == []
    (row,) = rows_of("calls_live")
    assert row["completion"] == "f(x=1); f(x='a')"
    assert row["prompt"].endswith("Request: Go\nCall:")
    (english,), (french,) = rows_of("chat_english"), rows_of("chat_other")
    assert [turn["content"] for turn in english["messages"]] == ["Hello", "Hi"]
    assert [turn["role"] for turn in french["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("scale", ["nan", "inf", "0"])
def test_a_scale_that_is_no_factor_is_refused(tmp_path, capsys, scale):
    assert main(["demo", "--output", str(tmp_path / "demo"), "--scale", scale]) == 2
    assert "--scale: found" in capsys.readouterr().err
