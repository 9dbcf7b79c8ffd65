"""Megatron's flags of data preparation: those that matter act, the others are explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from tests.conftest import synthetic_documents
from tests.unit.every_batch import every_batch


@pytest.mark.parametrize("masked", [False, True])
def test_what_follows_an_end_token_counts_as_in_megatron(
    search_values: dict, tmp_path: Path, masked: bool
) -> None:
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    search_values["data"]["eod_mask_loss"] = masked

    def documents(number: int) -> list[list[int]]:
        return [[*d, tokenizer.eod] for d in synthetic_documents("noise", 30, number)]

    read = every_batch(search_values, tmp_path, tokenizer, documents)
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
