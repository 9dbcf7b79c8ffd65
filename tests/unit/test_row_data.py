"""What the rows of a comparison are trained and tested on."""

import dataclasses
import json

import pytest
import torch

from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.comparison.candidates import Candidate
from megatron_fastmix.lab.comparison.config import DATA_FLAGS, load_compare_config
from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned
from megatron_fastmix.lab.comparison.row_data import RowData
from megatron_fastmix.lab.comparison.row_evaluation import batch_token_losses
from megatron_fastmix.lab.comparison.rows import Task
from megatron_fastmix.proxy.megatron_gpt import build_proxy, initialize_world_of_one
from tests.conftest import SEQ_LENGTH, SOURCES, synthetic_documents, write_dataset
from tests.unit.comparisons import SMALL

TOKENIZER = load_tokenizer("ByteLevelTokenizer")


def row_data(setting, weights, cache):
    """Of a training on `weights`, texts, of the sources."""
    initialize_world_of_one()
    mixture = dict(zip(SOURCES, weights, strict=True))
    task = Task(candidate=Candidate(name="given", kind="learned", weights=mixture), seed=1)
    return RowData(setting, task, TOKENIZER, cache, torch.device("cpu"))


def test_a_source_and_a_test_set_of_several_datasets(corpora, learned_file, test_set, tmp_path):
    """Text is drawn by weight × tokens of the dataset / tokens of the source, and a test set's
    samples come from all of its datasets."""

    def learned_from(shards):
        values = json.loads(learned_file.read_text())
        source = values["sources"][0]
        source["shards"] = [source["shards"][0] | {"path": path} for path in shards]
        for key in ("tokens", "loss_tokens", "rows"):
            source[key] = sum(shard[key] for shard in source["shards"])
        file = tmp_path / f"{len(shards)}.json"
        file.write_text(json.dumps(values))
        return read_learned([str(file)])["learned"]

    (tmp_path / "web").mkdir()
    for number, documents in enumerate((30, 90)):
        texts = synthetic_documents("forward", documents, 20 + number)
        write_dataset(tmp_path / f"web/part_{number}", texts, 259)
    (tmp_path / "tests").mkdir()
    for number in range(2):
        texts = synthetic_documents("noise", 20, 30 + number)
        write_dataset(tmp_path / f"tests/part_{number}", texts, 259)
    shards = [str(tmp_path / f"web/part_{number}") for number in range(2)]
    config = load_compare_config(None, SMALL, [f"held_out={tmp_path}/tests/part_*"])
    setting = make_setting(config, learned_from(shards), "mixture")
    first, second = setting.sources[0].shards.values()
    assert setting.sources[0].tokens == first + second
    refused_set = load_compare_config(None, SMALL, [f"held_out={tmp_path}/web"])
    with pytest.raises(ConfigError, match="web/part_0 is source forward of the search"):
        make_setting(refused_set, learned_from(shards), "mixture")
    weights = ("0.8", "0.1", "0.1")
    rows = row_data(setting, weights, tmp_path / "cache")
    drawn = [int(rows._blend[i]["dataset_id"]) for i in range(len(rows._blend))]
    share = 0.8 * first / (first + second)
    assert drawn.count(0) / len(drawn) == pytest.approx(share, abs=0.01)
    assert drawn.count(0) + drawn.count(1) == pytest.approx(0.8 * len(drawn), abs=2)
    tested = torch.cat([batch.tokens for batch in rows.test(setting.tests[0])])
    assert len(tested) == config.eval_samples
    parts = [
        dataclasses.replace(setting.tests[0], shards={p: n})
        for p, n in setting.tests[0].shards.items()
    ]
    rows.setting = dataclasses.replace(setting, eval_samples=None)
    ones = [torch.cat([batch.tokens for batch in rows.test(part)]) for part in parts]
    assert [sum(any(torch.equal(t, o) for o in one) for t in tested) for one in ones] == [8, 8]


def test_two_sources_of_one_dataset_both_count(corpora, learned_file, test_set, tmp_path):
    config = load_compare_config(None, SMALL, [f"held_out={test_set}"])
    setting = make_setting(config, read_learned([str(learned_file)])["learned"], "mixture")
    first, second, third = setting.sources
    setting = dataclasses.replace(
        setting, sources=(first, dataclasses.replace(first, name=second.name), third)
    )
    weights = ("0.4", "0.4", "0.2")
    rows = row_data(setting, weights, tmp_path / "cache")
    drawn = [int(rows._blend[i]["dataset_id"]) for i in range(len(rows._blend))]
    assert drawn.count(0) / len(drawn) == pytest.approx(0.8, abs=0.01)


def test_documents_share_a_sample_as_they_did_in_the_search(corpora, learned_file, tmp_path):
    """Of each flag, what the batches of a row hold; the mixture's configuration sets them."""
    documents = synthetic_documents("forward", 60, 7)
    ended = [[*document[:20], TOKENIZER.eod] for document in documents]
    write_dataset(tmp_path / "ended", ended, TOKENIZER.vocab_size)
    config = load_compare_config(None, SMALL, [f"held_out={tmp_path / 'ended'}"])
    learned = read_learned([str(learned_file)])["learned"]
    weights = ("0.5", "0.3", "0.2")
    model = build_proxy(
        config.model, vocab_size=TOKENIZER.vocab_size, seq_length=SEQ_LENGTH, seed=1
    )
    found, digests = {}, set()
    for flag in (None, *DATA_FLAGS):
        data = {} if flag is None else {flag: True}
        changed = dataclasses.replace(learned, config=learned.config | {"data": data})
        setting = make_setting(config, changed, "mixture")
        digests.add(setting.digest)
        rows = row_data(setting, weights, tmp_path / f"cache-{flag}")
        batch = next(iter(rows.test(setting.tests[0])))
        found[flag] = (batch, batch_token_losses(model, batch))
        assert len(rows.step(0)) == 1
    assert len(digests) == 4
    plain, losses = found[None]
    ends = plain.tokens == TOKENIZER.eod
    assert ends.any()
    assert plain.loss_mask.all()
    assert plain.positions is None
    masked, _ = found["eod_mask_loss"]
    assert torch.equal(masked.loss_mask == 0, ends)
    positions, moved = found["reset_position_ids"]
    assert positions.positions[ends.roll(1, 1)][1:].max() == 0
    apart, alone = found["reset_attention_mask"]
    assert apart.blocks[:, -1].min() >= 1
    first = (apart.blocks == 0) & ~ends  # what comes before the first end is as it was
    torch.testing.assert_close(alone[first], losses[first])
    assert not torch.allclose(alone, losses)
    torch.testing.assert_close(moved[first], losses[first])
