"""`mixture.json`: bitwise round trip, and nothing that is not one is read."""

import json
import math

import pytest

from megatron_fastmix.errors import DataError
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.result.mixture_keys import values_of


def test_a_mixture_round_trips_bitwise(tmp_path, make_mixture):
    mixture = make_mixture({"a": 1 / 3, "b": 0.1 + 0.2, "c": 1 - 1 / 3 - (0.1 + 0.2)})
    write_mixture(tmp_path / "mixture.json", mixture)
    assert read_mixture(tmp_path / "mixture.json") == mixture
    assert read_mixture(tmp_path) == mixture
    assert mixture.weights["b"] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 9}, "version is 9, this program reads 1 and 2"),
        ({"seed": "x"}, "seed"),
        ({"surplus": 1}, "surplus"),
        ({"unit": "share of rows"}, "unit is 'share of rows'"),
        ({"sources": []}, "sources is empty"),
        ({"targets": []}, "targets is empty"),
        ({"cost": 3}, "cost: expected a mapping, found 3"),
        ({"config": {"data": None}}, r"config\.data is None, expected an object"),
        ({"cost": {"tokens": "many"}}, r"cost\.tokens: expected float, found .many."),
        ({"seq_length": 32.5}, "seq_length: expected int"),
    ],
)
def test_what_is_no_mixture_is_refused(tmp_path, make_mixture, change, message):
    values = values_of(make_mixture({"a": 0.5, "b": 0.5})) | change
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_mixture(path)


def test_a_missing_key_is_refused(tmp_path, make_mixture):
    values = values_of(make_mixture({"a": 0.5, "b": 0.5}))
    del values["unit"], values["seq_length"]
    (tmp_path / "mixture.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="seq_length"):
        read_mixture(tmp_path)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("sources", {"weight": 0.4}, r"weight of sources: found summing to 0\.9"),
        ("sources", {"final_weight": 0.4}, r"final_weight of sources: found summing to 0\.9"),
        ("sources", {"weight": -0.5}, r"weight of sources: found negative for {'a': -0\.5}"),
        ("sources", {"tokens": 0}, "source a: tokens is 0"),
        ("sources", {"name": "b"}, r"\['b'\] occur more than once"),
        ("sources", {"colour": 1}, r"sources\[0\]\.colour: unknown key"),
        ("targets", {"weight": 0.0}, r"weight of targets: found summing to 0\.0"),
    ],
)
def test_sources_and_targets_that_cannot_be_are_refused(
    tmp_path, make_mixture, part, changes, message
):
    values = values_of(make_mixture({"a": 0.5, "b": 0.5}))
    values[part][0].update(changes)
    (tmp_path / "mixture.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_mixture(tmp_path)


def test_a_source_without_a_key_is_refused(tmp_path, make_mixture):
    values = values_of(make_mixture({"a": 0.5, "b": 0.5}))
    del values["sources"][1]["tokens"]
    (tmp_path / "mixture.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"sources\[1\]\.tokens: missing"):
        read_mixture(tmp_path)


def test_not_a_number_is_never_written(tmp_path, make_mixture):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 1.0}))
    before = (tmp_path / "mixture.json").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_mixture(tmp_path / "mixture.json", make_mixture({"a": math.nan}))
    assert (tmp_path / "mixture.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mixture.json"]


@pytest.mark.parametrize("text", ["", "[1]", '{"a": NaN}', "{"])
def test_files_that_are_not_json_objects_are_refused(tmp_path, text):
    (tmp_path / "mixture.json").write_text(text)
    with pytest.raises(DataError, match=r"mixture\.json"):
        read_mixture(tmp_path)
