"""Megatron's flags of data preparation: those that matter act, the others are explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.cli.main import main
from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.groups import DataParallelGroup
from tests.conftest import synthetic_documents, write_dataset


@pytest.mark.parametrize("masked", [False, True])
def test_what_follows_an_end_token_counts_as_in_megatron(
    search_values: dict, tmp_path: Path, masked: bool
) -> None:
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    owners = [*search_values["sources"], *search_values["targets"]]
    for number, owner in enumerate(owners):
        documents = [[*d, tokenizer.eod] for d in synthetic_documents("noise", 30, number)]
        owner["path"] = str(tmp_path / owner["name"])
        write_dataset(tmp_path / owner["name"], documents, tokenizer.vocab_size)
    search_values["data"]["eod_mask_loss"] = masked
    config: SearchConfig = strict_yaml.from_dict(SearchConfig, search_values)
    cache = str(tmp_path / "cache")
    blend = build_source_blend(
        config, Mixture(config.source_names, config.mixture), tokenizer, cache
    )
    batches = Batches(config, blend, build_targets(config, tokenizer, cache), DataParallelGroup())
    alpha = np.full(3, 1 / 3)
    read = [batches.training(0, 0), *batches.probe(0, alpha)]
    read += [batch for term in batches.objective(0, alpha, np.ones(1)) for batch, _ in term]
    ends = 0
    for batch in read:
        at_end = batch.tokens == tokenizer.eod
        ends += int(at_end.sum())
        assert batch.loss_mask.equal((~(at_end & masked)).float())
    assert ends > 5


def test_a_command_line_of_megatrons_script_is_taken_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    call = ["preprocess", "--input", str(tmp_path / "a.jsonl"), "--workers", "1"]
    call += ["--tokenizer-type", "ByteLevelTokenizer", "--append-eod"]
    assert main([*call, "--output-prefix", str(tmp_path / "plain")]) == 0
    assert "note: --" not in capsys.readouterr().err
    extra = ["--log-interval", "1000", "--partitions", "2", "--keep-sequential-samples"]
    assert main([*call, "--output-prefix", str(tmp_path / "theirs"), *extra]) == 0
    said = capsys.readouterr().err
    for flag in ("--log-interval", "--partitions", "--keep-sequential-samples"):
        assert f"note: {flag}: of Megatron's script; changes nothing here" in said
    one, other = (
        (tmp_path / f"{name}_text_document.bin").read_bytes() for name in ("plain", "theirs")
    )
    assert one == other
