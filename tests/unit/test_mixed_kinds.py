"""A mixture of text and answer-only sources: each artefact says what its shares are of."""

import dataclasses
import json

import pytest

from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.notes import change_table
from megatron_fastmix.megatron.run_mixture import _weights
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.result.sizes import Shard


@pytest.fixture
def mixed(make_mixture):
    """Half the loss tokens from 5,000 tokens of text, half from 100 rows of 8 answer tokens."""
    mixture = make_mixture({"text": 0.5, "chat": 0.5})
    rows = Shard(path="/data/chat", tokens=4_000, loss_tokens=800, rows=100)
    chat = dataclasses.replace(mixture.sources[1], shards=(rows,), documents=100)
    return dataclasses.replace(mixture, sources=(mixture.sources[0], chat))


def test_the_file_comes_back_with_its_unit(mixed, tmp_path):
    write_mixture(tmp_path / "mixture.json", mixed)
    assert json.loads((tmp_path / "mixture.json").read_text())["unit"] == "share of loss tokens"
    assert read_mixture(tmp_path / "mixture.json") == mixed


def test_each_unit_has_its_own_shares(mixed):
    # A sample of text has 32 loss tokens, a row 8; a document of text has 100.
    assert mixed.shares("samples") == pytest.approx({"text": 0.2, "chat": 0.8})
    assert mixed.shares("rows") == pytest.approx({"text": 0.8 / 10.8, "chat": 10 / 10.8})
    # 40 tokens of a row are read for its 8.
    assert mixed.shares("tokens") == pytest.approx({"text": 1 / 6, "chat": 5 / 6})
    blend = make_blend(mixed, "samples")
    assert [float(entry.weight) for entry in blend.sources] == [0.2, 0.8]
    assert "samples: --seq-length tokens of text, one row" in change_table(mixed, blend)


def test_texts_speak_of_loss_tokens(mixed):
    table = final_table(mixed, blend_txt="blend.txt", blend_json=None)
    assert "Weights are shares of loss tokens: all tokens of text, answer tokens of" in table
    assert "samples of 32 tokens of text, and rows of answer-only sources" in table
    assert "--data-args-path" not in table


@pytest.mark.parametrize("rows", [True, False])
def test_megatrons_training_is_of_one_kind(mixed, rows):
    with pytest.raises(ConfigError, match="sources are text and answer-only rows"):
        _weights(mixed, rows)


def test_a_unit_of_one_kind_admits_no_other(mixed, tmp_path):
    file = tmp_path / "mixture.json"
    write_mixture(file, mixed)
    values = json.loads(file.read_text())
    for unit in ("share of answer tokens", "share of samples of seq_length tokens"):
        file.write_text(json.dumps(values | {"unit": unit}))
        with pytest.raises(DataError, match="loss_tokens"):
            read_mixture(file)
