"""YAML that says two things, or what no program can hold, is refused with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.blend.weight_schedule import read_schedule
from megatron_fastmix.config import load_config, strict_yaml
from megatron_fastmix.errors import ConfigError, FastMixError
from megatron_fastmix.lab.comparison.config import load_compare_config
from megatron_fastmix.lab.comparison.scenario import load_scenario

TWICE = """
training: {lr: 1.0e-3}
sources:
  - name: a
    path: b
    name: c
"""


@pytest.mark.parametrize(
    "load", [load_config, lambda p: load_compare_config(p, [], []), load_scenario, read_schedule]
)
def test_a_key_that_stands_twice_is_named_with_both_lines(
    load: Callable[[Path], Any], tmp_path: Path
) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text(TWICE)
    with pytest.raises(FastMixError, match=r"twice.yaml: the key 'name' is on line 4 and again on"):
        load(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is on line 1 and again on line 3"),
        ("{a: 1, a: 1}", "'a' is on line 1 and again on line 1"),
        ("'a': 1\n\"a\": 2", "'a' is on line 1 and again on line 2"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2", "'b' is on line 4 and again on line 5"),
        ("x: [1, {k: 1,\n  k: 2}]", "'k' is on line 1 and again on line 2"),
        ("x:\n  <<: {a: 1,\n    a: 2}", "'a' is on line 2 and again on line 3"),
        ("x: {<<: [{a: 1}, {b: 1, b: 2}]}", "'b' is on line 1 and again on line 1"),
        ("1: a\n0x1: b", "1 is on line 1 and again on line 2"),
        ("a: 2026-13-45", "not valid YAML"),
        (f"a: {'9' * 5000}", "not valid YAML"),
        ("a: &a [*a]", "an anchor holds itself"),
        ("[" * 5000, "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        ("a: 1\nb: 0144", "found 0144 on line 2, which YAML 1.1 reads as a number in base 8"),
        ("a: [-007]", "base 8"),
        ("a: 1:40", "found 1:40 on line 1, which YAML 1.1 reads as a number in base 60"),
        ("1:40.5: a", "base 60"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        (
            "\n".join(["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]"
                                            for n in range(1, 12)]),
            "its anchors make more than",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strict_yaml.parse_yaml(text, "here")


def test_numbers_in_base_10_and_texts_stay() -> None:
    text = "[0, -0, 10, 1_000, 0x1F, 0.5, 00.5, '0144', 1:40 h, 0o17, 09a]"
    found = strict_yaml.parse_yaml(text, "here")
    assert found == [0, 0, 10, 1000, 31, 0.5, 0.5, "0144", "1:40 h", "0o17", "09a"]


@pytest.mark.parametrize("value", ["true", "1.0", "'1'", "4"])
def test_a_choice_of_numbers_takes_no_other_kind(config_file: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"engine.zero_stage: found .*; choose one of 0, 1, 2, 3"):
        load_config(config_file, [f"--engine.zero_stage={value}"])
    assert load_config(config_file, ["--engine.zero_stage=1"]).engine.zero_stage == 1


def test_a_budget_that_no_file_can_hold_is_refused(config_file: Path) -> None:
    for text in ("1e30", "1e19", "9223373T"):
        with pytest.raises(ConfigError, match=r"output.token_budget: found .* below 2\^63"):
            load_config(config_file, [f"--output.token_budget={text}"])
    assert load_config(config_file, ["--output.token_budget=9e18"]).token_budget == 9 * 10**18


def test_a_merged_key_may_be_overridden() -> None:
    text = "x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3"
    assert strict_yaml.parse_yaml(text, "here")["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff", "invalid UTF-8 at byte 4"),
        ("a: 1".encode("utf-16"), r"in UTF-16, by its byte-order mark.*iconv -f UTF-16 -t UTF-8"),
        (b"a: \x00", "not valid YAML"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        strict_yaml.load_yaml(tmp_path / "a.yaml")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("a: 1".encode("utf-8-sig"))
    assert strict_yaml.load_yaml(tmp_path / "a.yaml") == {"a": 1}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (f"--seed={10**30}", "seed: found a number of"),
        (f"--lr={10**400}", "found a number of"),
        ("--lr=²e1", "expected float, found '²e1'"),
        ("--lr=+-1e3", "expected float"),
        (r'--run_dir="a\0b"', "holds a NUL character"),
        (r'--run_dir="\ud800"', "half a surrogate pair"),
        ("--run_dir=2026-01-32", "not valid YAML"),
        ("--run_dir={a: 1, a: 2}", "the key 'a' is on line 1 and again"),
    ],
)
def test_a_value_that_nothing_can_hold(config_file: Path, flag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, [flag])


def test_a_target_is_no_source_by_whatever_path(
    config_file: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpora)
    (tmp_path / "folder").symlink_to(corpora)
    for end in (".bin", ".idx"):
        (tmp_path / f"link{end}").symlink_to(corpora / f"noise{end}")
        (tmp_path / f"hard{end}").hardlink_to(corpora / f"noise{end}")
    spellings = ["noise", "./noise", "../" + corpora.name + "/noise", f"{corpora}/./noise"]
    spellings += [
        str(tmp_path / "folder" / "noise"),
        str(tmp_path / "link"),
        str(tmp_path / "hard"),
    ]
    for path in spellings:
        with pytest.raises(ConfigError, match="a target must not be a source"):
            load_config(config_file, [f"--targets=[{{name: t, path: {path}}}]"])
    load_config(config_file, ["--targets=[{name: t, path: noise_too}]"])
