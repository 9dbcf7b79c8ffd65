"""Megatron blends read back: every form that is exported gives the same weights."""

import json
import os
import time

import pytest
import yaml
from megatron.core.datasets.utils import get_blend_from_list

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import load_config
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.import_blend import read_blend
from megatron_fastmix.export.registry import FORMATS
from tests.conftest import write_dataset, write_rows


@pytest.mark.parametrize(
    "name",
    [
        "megatron-cli",
        "megatron-data-args",
        "megatron-per-split",
        "megatron-bridge",
        "nemo-1",
        "nemo-2",
    ],
)
def test_every_megatron_form_comes_back(tmp_path, make_mixture, name):
    folder = "/data" if name == "megatron-data-args" else "/my data's"
    blend = make_blend(make_mixture({"a": 0.7, "b": 0.25, "c": 0.05}, folder=folder))
    file = tmp_path / ("blend.yaml" if name in ("megatron-bridge", "nemo-1") else "blend")
    file.write_text(FORMATS[name].render(blend))
    found = read_blend(file)
    assert list(found) == [f"{folder}/{source}" for source in "abc"]
    assert list(found.values()) == pytest.approx([0.7, 0.25, 0.05], abs=1e-12)


LAUNCHER = """
trainer: {num_nodes: 8}
model:
  micro_batch_size: 4
  data:
    data_impl: mmap
    data_prefix: # weights and paths
      - .25
      - ${data_dir}/a_text_document
      - 7.5e-1
      - ${data_dir}/b_text_document
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blend", '[0.25, "/d/a", 0.75, "/d/b"]'),
        ("blend", '[1, "/d/a", "3", " /d/b "]'),
        ("blend", '{"train": [0.25, "/d/a", 0.75, "/d/b"], "valid": null, "test": null}'),
        ("blend.yaml", "[0.25, /d/a, 0.75, /d/b]"),
        ("blend.yaml", "train: [25, /d/a, 75, /d/b]"),
        ("blend.yml", "- 1\n- /d/a\n- 3\n- /d/b\n"),
        ("nemo.yaml", LAUNCHER.replace("${data_dir}", "/d").replace("_text_document", "")),
        ("nemo.yaml", "data:\n  paths: ['25', /d/a, 75, /d/b]\n  seq_length: 8\n"),
        ("nemo.yaml", "data: {paths: {train: [25, /d/a, 75, /d/b], test: [/d/c]}}"),
        ("nemo.txt", "paths=['1', '/d/a', 3, '/d/b'],\n"),
        ("hydra.txt", "model.data.data_prefix=[1,/d/a,3,/d/b]\n"),
        ("bridge.yaml", "dataset:\n  blend:\n  - [/d/a, /d/b]\n  - [0.25, 0.75]\n"),
        ("bridge.yaml", "blend: null\nblend_per_split: [[[/d/a, /d/b], [1, 3]], null, null]"),
        ("bridge.txt", "dataset.blend=[[/d/a,/d/b],[0.25,0.75]]\n"),
        ("bridge.txt", "dataset.blend_per_split=[[[/d/a,/d/b],[1,3]],[[/d/c],null],null]\n"),
        ("nemo.txt", "paths={'train': ['1', '/d/a', 3, '/d/b'], 'test': ['/d/c']},\n"),
        ("distill.sh", "#!/bin/bash\ntorchrun distill.py --data_paths 1 /d/a 3 /d/b --tp_size 8\n"),
        ("blend.json", '[["/d/a", "/d/b"], ["0.25", 0.75]]'),
        ("blend.json", '{"train": [["/d/a", "/d/b"], [1, 3]], "valid": null, "test": null}'),
        ("nemo.json", '{"model": {"data": {"data_prefix": {"train": ["1", "/d/a", 3, "/d/b"]}}}}'),
    ],
)
def test_weights_may_be_numbers(tmp_path, name, text):
    """As Megatron's own reader takes them, which a list of numbers and paths passes through."""
    (tmp_path / name).write_text(text)
    assert read_blend(tmp_path / name) == pytest.approx({"/d/a": 0.25, "/d/b": 0.75})
    words = json.loads(text) if name == "blend" and text[0] == "[" else [0.25, "/d/a", 0.75, "/d/b"]
    prefixes, weights = get_blend_from_list(words)
    assert [weight / sum(weights) for weight in weights] == pytest.approx([0.25, 0.75])
    assert prefixes == ["/d/a", "/d/b"]


def test_a_variable_of_the_launcher_is_named(tmp_path, capsys):
    (tmp_path / "126m.yaml").write_text(LAUNCHER)
    assert main(["import", str(tmp_path / "126m.yaml")]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["mixture"] == {"initial_weights": [0.25, 0.75]}
    assert "${data_dir}/a_text_document names a variable" in err


def test_without_weights_sizes_decide(tmp_path, corpora):
    """As with Megatron, whose reader then gives no weights."""
    words = [f"{corpora}/forward", f"{corpora}/noise", f"{corpora}/target"]
    assert get_blend_from_list(words) == (words, None)
    (tmp_path / "blend.txt").write_text(" ".join(words))
    tokens = [inspect_indexed_dataset(word).tokens for word in words]
    shares = read_blend(tmp_path / "blend.txt")
    assert shares == pytest.approx(
        {word: count / sum(tokens) for word, count in zip(words, tokens, strict=True)}
    )


def test_weights_of_any_scale_and_the_flags_around_are_read(tmp_path):
    path = tmp_path / "blend"
    path.write_text("python pretrain_gpt.py --lr 1e-3 --train-data-path 30 /d/a \\\n 90 /d/b --x 1")
    assert read_blend(path) == {"/d/a": 0.25, "/d/b": 0.75}
    path.write_text('DATA="--data-path 30 /d/a 90 /d/b"\npython pretrain_gpt.py $DATA --lr 1e-3\n')
    assert read_blend(path) == {"/d/a": 0.25, "/d/b": 0.75}
    path.write_text(json.dumps({"train": "1 /d/a 3 /d/b", "valid": None, "test": None}))
    assert read_blend(path) == {"/d/a": 0.25, "/d/b": 0.75}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no blend"),
        ("/d/a /d/b", "lists prefixes without weights"),
        ("/d/a /d/b", "lists prefixes without weights"),
        ("0.3 /d/a x /d/b", "weight of /d/b is 'x'"),
        ("0.3 /d/a -1 /d/b", "weight of /d/b is '-1'"),
        ("nan /d/a 1 /d/b", "weight of /d/a is 'nan'"),
        ("0.3 /d/a 1 /d/a", "/d/a occurs twice"),
        ("{}", "none of the keys train, data_prefix"),
        ('{"blend": [["/d/a", "/d/b"], [1]]}', "blend has 2 prefixes and 1 weights"),
        ("{", "not valid JSON"),
        ('{"train": [true, "/d/a"]}', "holds True; expected a list of weights and prefixes"),
        ('{"train": {"a": 1}}', "expected a list of weights and prefixes"),
        ('{"train": [0.3, 5]}', "found 5 in the place of a prefix"),
        ('{"train": ["x"], "train": []}', "'train' occurs twice"),
        ("[0.3, null]", "holds None"),
        ('[1e999, "/d/a"]', "weight of /d/a is inf"),
        ('[NaN, "/d/a"]', "holds NaN"),
        (f'[{"9" * 500}, "/d/a"]', "in the place of a prefix"),
        ("--data-paths x", "expected --data-path or --train-data-path"),
        ("--data-path 1 /d/a 1 /d/b --data-path 3 /d/a 1 /d/b", "has several --data-path"),
        ("A='--data-path 1 /d/a'; B='--data-path 1 /d/b'", "has several blends in quotes"),
        ("--data-path=x", "after `=` comes one value alone"),
        ("--data-path 'x", "not a command line"),
        ('[0.3, "d/a", 0.7]', "the last weight, 0.7, has no prefix"),
        ("0.3 d/a 0.7", "the last weight, 0.7, has no prefix"),
        ('[[0.3, "d/a"], [0.7, "d/b"]]', r"pairs.* in one list: \[0.3, d/a, 0.7, d/b, ...\]"),
        ('[["d/a", 1], ["d/b", 2], ["d/c", 3]]', r"in one list: \[1, d/a, 2, d/b, ...\]"),
        ("[]", "holds no blend"),
    ],
)
def test_what_is_no_blend_is_refused(tmp_path, text, message):
    (tmp_path / "blend").write_text(text)
    with pytest.raises(DataError, match=message):
        read_blend(tmp_path / "blend")


def test_a_missing_or_binary_file_is_refused(tmp_path, capsys):
    assert main(["import", str(tmp_path / "nothing")]) == 2
    assert "cannot read the blend" in capsys.readouterr().err
    (tmp_path / "blend.bin").write_bytes(b"\xff\xfe\x00")
    assert main(["import", str(tmp_path / "blend.bin")]) == 2


def test_a_blend_becomes_the_start_or_the_prior_of_a_search(
    tmp_path, corpora, config_file, search_values, capsys
):
    path = tmp_path / "blend.txt"
    path.write_text(f"1 {corpora}/noise 2 {corpora}/backward 5 {corpora}/forward")
    call = ["import", str(path), "--config", str(config_file)]
    assert main(call) == 0
    section = yaml.safe_load(capsys.readouterr().out)
    # In the order of the configuration's sources: forward, backward, noise.
    assert section == {"mixture": {"initial_weights": [0.625, 0.25, 0.125]}}
    search_values["mixture"] |= section["mixture"]
    config_file.write_text(yaml.safe_dump(search_values))
    assert load_config(config_file).mixture.initial_weights == (0.625, 0.25, 0.125)
    assert main([*call, "--as", "prior"]) == 0
    section = yaml.safe_load(capsys.readouterr().out)
    assert section == {"objective": {"prior_weights": [0.625, 0.25, 0.125]}}


def test_sources_are_printed_where_there_is_no_configuration(tmp_path, capsys):
    (tmp_path / "blend.txt").write_text("3 /one/code 1 /two/code")
    assert main(["import", str(tmp_path / "blend.txt")]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {
        "sources": [
            {"name": "code", "path": "/one/code"},
            {"name": "code_2", "path": "/two/code"},
        ],
        "mixture": {"initial_weights": [0.75, 0.25]},
    }


def test_a_blend_of_other_sources_is_refused_or_filled_up(tmp_path, corpora, config_file, capsys):
    path = tmp_path / "blend.txt"
    call = ["import", str(path), "--config", str(config_file)]
    path.write_text(f"1 {corpora}/other 2 {corpora}/noise")
    assert main(call) == 2
    assert "other is no source of" in capsys.readouterr().err
    path.write_text(f"1 {corpora}/backward 1 {os.path.relpath(corpora)}/noise")
    assert main(call) == 2
    assert "lacks forward" in capsys.readouterr().err
    assert main([*call, "--missing-weight", "1.5"]) == 2
    capsys.readouterr()
    assert main([*call, "--missing-weight", "0.2"]) == 0
    section = yaml.safe_load(capsys.readouterr().out)
    assert section == {"mixture": {"initial_weights": [0.2, 0.4, 0.4]}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blend.json", '"0.25 /d/a 0.75 /d/b"'),
        ("blend.json", '["0.25 /d/a 0.75 /d/b"]'),
        ("blend.json", '{"train": ["0.25 /d/a 0.75 /d/b"], "valid": null, "test": null}'),
        ("blend.yaml", 'model: {data: {data_prefix: "[0.25,/d/a,0.75,/d/b]"}}'),
        ("run.sh", 'pretrain_gpt.py --data-path "0.25 /d/a 0.75 /d/b" --seq-length 8'),
        ("run.sh", 'pretrain_gpt.py --train-data-path="0.25 /d/a 0.75 /d/b" --seq-length 8'),
    ],
)
def test_a_list_written_as_one_text_is_the_list(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_blend(tmp_path / name) == {"/d/a": 0.25, "/d/b": 0.75}


def test_weights_of_any_size_are_read(tmp_path, capsys):
    (tmp_path / "blend").write_text('{"train": [1e308, "d/a", 1e308, "d/b"]}')
    assert read_blend(tmp_path / "blend") == {"d/a": 0.5, "d/b": 0.5}
    (tmp_path / "blend").write_text('{"train": [1e-12, "d/a", 1, "d/b"]}')
    assert main(["import", str(tmp_path / "blend")]) == 0
    weights = yaml.safe_load(capsys.readouterr().out)["mixture"]["initial_weights"]
    assert weights == pytest.approx([1e-12, 1], rel=1e-9)


def test_a_blend_of_many_datasets_is_read_at_once(tmp_path):
    (tmp_path / "blend").write_text("\n".join(f"1 /d/{n}" for n in range(20_000)))
    began = time.process_time()
    assert len(read_blend(tmp_path / "blend")) == 20_000
    assert time.process_time() - began < 30  # compared in pairs they took ten minutes


def test_what_weighs_nothing_is_left_out(tmp_path):
    (tmp_path / "blend").write_text("0.25 /d/a 0.0 /d/c 0.75 /d/b 0 /d/d")
    assert read_blend(tmp_path / "blend") == {"/d/a": 0.25, "/d/b": 0.75}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 /d/a 0.0 /d/b", "all weights are 0"),
        ("-1 /d/a 2 /d/b", "weight of /d/a is '-1'; expected a number, 0 or more"),
        ("--data-path=0.3 /d/a 0.7 /d/b", "after `=` comes one value alone"),
        ('B="0.3 /d/a"\npretrain_gpt.py --data-path $B', r"holds \$B, which a shell"),
        ("pretrain_gpt.py --data-path ${B[@]} --x 1", r"holds \$\{B\[@\]\}, which a shell"),
        ("a.py data_prefix=[1,/d/a]; a.py data_prefix=[1,/d/b]", "has several data_prefix"),
        ("don't data_prefix=[1,/d/a]", "lists prefixes without weights"),
        ('run --data-path 0.3 /d/a 0.7 /d/b "$@"', r"holds \$@, which a shell .* leave it out"),
        ("run --data-path 0.3 /d/a 0.7 /d/b $EXTRA", r"holds \$EXTRA, which a shell"),
    ],
)
def test_what_is_no_blend_says_why(tmp_path, text, message):
    (tmp_path / "blend").write_text(text)
    with pytest.raises(DataError, match=message):
        read_blend(tmp_path / "blend")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("args.yaml", "data_path: [0.25, /d/a, 0.75, /d/b]"),
        ("model.yaml", "MODEL_ARGS: {--data-path: 0.25 /d/a 0.75 /d/b, --bf16: true}"),
        ("neox.yml", '{"train-data-paths": ["/d/a", "/d/b"], "train_data_weights": [1.0, 3.0],}'),
        ("lines.yaml", "- 0.25 /d/a\n- 0.75 /d/b\n"),
        (
            "nanotron.yaml",
            "data_stages:\n- {name: stable, data: {dataset: {dataset_folder: [/d/a, /d/b], "
            "dataset_weights: [1, 3]}}}\n",
        ),
        ("nanotron.yaml", "dataset: {dataset_folder: {/d/a: 1, /d/b: 3}}"),
        ("run.sh", "ARGS=(\n  --bf16\n  --data-path 1 /d/a 3 /d/b\n)\npython x.py ${ARGS[@]}\n"),
        ("run.sh", "# don't\npython x.py --data-path 1 /d/a 3 /d/b | tee log"),
        ("run.sh", "python x.py \\\r\n --data-path 1 /d/a \\\r\n 3 /d/b  # a comment\r\n"),
        ("entries.json", '[{"path": "/d/a", "weight": 1}, {"weight": 3, "path": "/d/b"}]'),
    ],
)
def test_further_forms_of_a_blend(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_blend(tmp_path / name) == {"/d/a": 0.25, "/d/b": 0.75}


@pytest.mark.parametrize(
    "text",
    ["/d/a", '["/d/a"]', "--data-path /d/a --bf16", '{"dataset": {"dataset_folder": "/d/a"}}'],
)
def test_one_path_needs_no_weight_and_no_dataset_here(tmp_path, text):
    (tmp_path / "blend").write_text(text)
    assert read_blend(tmp_path / "blend") == {"/d/a": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "run --data-path 0.3 /d/a 0.7 /d/b; echo done",
        "run --data-path 0.3 /d/a 0.7 /d/b>log",
        "run --data-path 0.3 /d/a 0.7 /d/b 2>log",
        "run --data-path 0.3 /d/a 0.7 /d/b\necho done",
        "ARGS=(\n  --data-path 0.3 /d/a\n  0.7 /d/b\n)\nrun ${ARGS[@]} 2>&1 | tee log",
        "ARGS=(--data-path 0.3 /d/a 0.7 /d/b)\nrun",
        "--data-path\n0.3\n/d/a\n0.7\n/d/b\n--bf16",
        'srun bash -c "run --data-path 0.3 /d/a 0.7 /d/b --bf16"',
    ],
)
def test_the_shell_ends_a_list(tmp_path, text):
    (tmp_path / "run.sh").write_text(text)
    assert read_blend(tmp_path / "run.sh") == {"/d/a": 0.3, "/d/b": 0.7}


def test_rows_of_answers_become_shares_of_answer_tokens(tmp_path, capsys):
    # Rows of the one have three times the answer of the other's.
    for name, length in (("long", 6), ("short", 2)):
        write_rows(tmp_path / name, [([1, 2], [3] * length)] * 20, 258)
    (tmp_path / "blend").write_text(f"0.5 {tmp_path}/long 0.5 {tmp_path}/short")
    assert main(["import", str(tmp_path / "blend")]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["mixture"] == {"initial_weights": [0.75, 0.25]}
    assert "shares of rows" in err
    search = {
        "run_dir": "run",
        "sources": [{"name": n, "path": f"{tmp_path}/{n}"} for n in ("long", "short")],
        "targets": [{"name": "held", "path": f"{tmp_path}/held"}],
        "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search))
    named = [{"name": n, "path": "text.jsonl", "weight": 1} for n in ("long", "short")]
    (tmp_path / "named.json").write_text(json.dumps({"datasets": named}))
    assert main(["import", f"{tmp_path}/named.json", "--config", f"{tmp_path}/search.yaml"]) == 0
    told = yaml.safe_load(capsys.readouterr().out)["mixture"]
    assert told == {"initial_weights": [0.75, 0.25]}
    named = [{"name": n, "path": f"{tmp_path}/{n}", "weight": 1} for n in ("long", "short")]
    (tmp_path / "named.json").write_text(json.dumps({"datasets": named}))
    assert main(["import", f"{tmp_path}/named.json"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["mixture"] == told
    tokens = {"train-data-paths": [f"{tmp_path}/long"], "train-data-weights": [1.0]}
    (tmp_path / "neox.json").write_text(json.dumps(tokens))
    with pytest.raises(DataError, match="long, which is answer-only; its weights count all tokens"):
        read_blend(tmp_path / "neox.json")
    write_dataset(tmp_path / "text", [list(range(60))] * 5, 256)
    (tmp_path / "blend").write_text(f"0.5 {tmp_path}/long 0.5 {tmp_path}/text")
    assert main(["import", str(tmp_path / "blend")]) == 2
    assert "--config: missing; the blend has text and answer-only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/d/a 0.3 /d/b 0.7", "each prefix before its weight"),
        ('0.3 "/d/a" 0.7 "/d/b"', "a quotation mark here for a part of the path"),
        ("0.3 /d/a.bin 0.7 /d/b.bin", "to which Megatron adds .bin and .idx; write /d/a"),
        ("# web\n0.3 /d/a 0.7 /d/b", "has a comment"),
        ("# of export runs/a --decimals 4\n0.3 /d/a 0.7 /d/b", "has a comment"),
        ("0.3 /d/a 0.7 /d/./a", "occurs twice"),
        ("--data-path @blend.txt", "takes a reference here"),
        ("train.py --data-args-path b.txt --bf16", "names the file of the blend: give b.txt"),
        ("train.py --per-split-data-args-path=b.json", "names the file of the blend: give b.json"),
        ("#!/bin/bash\ntrain.py --data-args-path b.txt", "names the file of the blend: give b.txt"),
        ("#!/bin/bash\nrun.py --dataset_paths /d/a", "is a command line without --data-path"),
    ],
)
def test_what_only_looks_like_a_blend(tmp_path, text, message):
    (tmp_path / "blend").write_text(text)
    with pytest.raises(DataError, match=message):
        read_blend(tmp_path / "blend")


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("data: {validation_ds: {data_prefix: [1, v]}, train_ds: {data_prefix: [1, a]}}", {"a": 1}),
        ("{validation: {dataset_folder: {v: 1}}, data: {dataset_folder: {a: 1, b: 1}}}", None),
    ],
)
def test_what_is_held_out_is_no_blend(tmp_path, text, shares):
    (tmp_path / "e.yaml").write_text(text)
    assert read_blend(tmp_path / "e.yaml") == (shares or {"a": 0.5, "b": 0.5})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test_ds: {data_prefix: [1, v]}", "none of the keys train"),
        ("splits: {train: {blend: [{weight: 9, path: ./a}]}}", "whose weights count documents"),
        ("model:\n  data:\n    data_prefix: ???\n", r"found \?\?\? in the place of a prefix"),
        ("data_prefix:\n- 0.5\n- ???\n- 0.5\n- a\n", "a value that is still missing"),
    ],
)
def test_no_blend_to_train_on(tmp_path, text, message):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_blend(tmp_path / "e.yaml")
