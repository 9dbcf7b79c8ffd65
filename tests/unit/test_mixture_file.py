"""`mixture.json`: bitwise round trip, and nothing that is not one is read."""

import dataclasses
import json

import pytest

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.mixture_file import read_mixture


def test_a_mixture_round_trips_bitwise(tmp_path, make_mixture):
    mixture = make_mixture({"a": 1 / 3, "b": 0.1 + 0.2, "c": 1 - 1 / 3 - (0.1 + 0.2)})
    mixture.write(tmp_path / "mixture.json")
    assert read_mixture(tmp_path / "mixture.json") == mixture
    assert read_mixture(tmp_path) == mixture
    assert mixture.weights["b"] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 9}, "version is 9, this program reads 1"),
        ({"seed": "x"}, "seed"),
        ({"surplus": 1}, "surplus"),
        ({"sources": []}, "sources"),
    ],
)
def test_what_is_no_mixture_is_refused(tmp_path, make_mixture, change, message):
    values = dataclasses.asdict(make_mixture({"a": 0.5, "b": 0.5})) | change
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_mixture(path)


def test_a_missing_key_is_refused(tmp_path, make_mixture):
    values = dataclasses.asdict(make_mixture({"a": 0.5, "b": 0.5}))
    del values["unit"], values["seq_length"]
    (tmp_path / "mixture.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="seq_length"):
        read_mixture(tmp_path)


def test_weights_that_do_not_sum_to_one_are_refused(tmp_path, make_mixture):
    make_mixture({"a": 0.5, "b": 0.4}).write(tmp_path / "mixture.json")
    with pytest.raises(DataError, match=r"0\.9"):
        read_mixture(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": NaN}', "{"])
def test_files_that_are_not_json_objects_are_refused(tmp_path, text):
    (tmp_path / "mixture.json").write_text(text)
    with pytest.raises(DataError, match=r"mixture\.json"):
        read_mixture(tmp_path)
