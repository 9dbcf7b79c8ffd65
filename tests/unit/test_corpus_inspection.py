"""Inspecting datasets: lengths, samples, and a target that is not held out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fastmix.cli.main import main
from megatron_fastmix.corpus import inspection
from megatron_fastmix.corpus.inspection import length_statistics, overlap, sample_texts
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from tests.conftest import write_dataset, write_rows

DOCUMENTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=6)


def brute_force(source, target, n):
    def runs(document):
        return [tuple(document[i : i + n]) for i in range(len(document) - n + 1)]

    known = {run for document in source for run in runs(document)}
    all_runs = [run for document in target for run in runs(document)]
    return (
        np.mean([document in source for document in target]),
        np.mean([any(run in known for run in runs(document)) for document in target]),
        np.mean([run in known for run in all_runs]) if all_runs else 0.0,
    )


@settings(max_examples=60)
@given(DOCUMENTS, DOCUMENTS, st.integers(1, 4))
def test_overlap_equals_a_search_by_brute_force(tmp_path_factory, source, target, n):
    folder = tmp_path_factory.mktemp("overlap")
    write_dataset(folder / "source", source, 300)
    write_dataset(folder / "target", target, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "BLOCK_TOKENS", 5)  # several blocks even here
        found = overlap(folder / "source", folder / "target", n)
    assert (found.equal, found.touched, found.runs) == pytest.approx(brute_force(source, target, n))


def test_lengths_and_samples(tmp_path):
    documents = [list(b"one"), list(b"three"), list(b"eleven and more")]
    write_dataset(tmp_path / "data", documents, 300)
    lengths = length_statistics(tmp_path / "data")
    assert (lengths.sequences, lengths.median, lengths.longest) == (3, 5, 15)
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    texts = sample_texts(tmp_path / "data", tokenizer, 3, tokens=6)
    assert texts == ["one", "three", "eleven"]
    assert len(sample_texts(tmp_path / "data", tokenizer, 2)) == 2


def test_samples_show_special_tokens_and_what_is_learned(tmp_path):
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    prefix = tmp_path / "data"
    prompts = [list("q: é ".encode()), list(b"x" * 90)]
    answers = [[*"né!".encode(), 256], [*b"y", 256]]
    write_rows(prefix, list(zip(prompts, answers, strict=True)), 300)
    assert sample_texts(prefix, tokenizer, 2) == ["q: é ⟦né!<eod>⟧", "…" + "x" * 32 + "⟦y<eod>⟧"]
    (tmp_path / "data_loss_mask.bin").write_bytes(bytes(3))
    with pytest.raises(DataError, match="loss_mask"):
        sample_texts(prefix, tokenizer, 2)


def test_samples_of_another_tokenizer_are_refused(tmp_path):
    write_dataset(tmp_path / "data", [[1, 299]], 300)
    with pytest.raises(DataError, match="holds the id 299, the tokenizer has 258"):
        sample_texts(tmp_path / "data", load_tokenizer("ByteLevelTokenizer"), 1)
    write_dataset(tmp_path / "data", [[1, -2]], 1 << 17)
    with pytest.raises(DataError, match="holds the id -2, the tokenizer has 258"):
        sample_texts(tmp_path / "data", load_tokenizer("ByteLevelTokenizer"), 1)


def test_a_contaminated_target_shows_on_the_command_line(tmp_path, capsys):
    clean, leaked = list(range(100, 130)), list(range(60, 90))
    write_dataset(tmp_path / "source", [list(range(40)), leaked], 300)
    write_dataset(tmp_path / "other", [list(range(40))], 300)
    write_dataset(tmp_path / "target", [clean, leaked], 300)
    arguments = ["inspect", str(tmp_path / "source"), str(tmp_path / "other")]
    assert main([*arguments, "--target", str(tmp_path / "target")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (bad,) = [line for line in lines if line.endswith("contaminated")]
    assert "target in" in bad
    assert str(tmp_path / "source") in bad
    assert "50.0%" in bad
    (good,) = [line for line in lines if f"target in {tmp_path / 'other'}" in line]
    assert "0.0%" in good
    assert not good.endswith("contaminated")


def test_samples_need_a_tokenizer(tmp_path, capsys):
    write_dataset(tmp_path / "data", [[1, 2]], 300)
    assert main(["inspect", str(tmp_path / "data"), "--samples", "2"]) == 2
    assert "give --tokenizer-type" in capsys.readouterr().err
    flags = ["--samples", "1", "--tokenizer-type", "ByteLevelTokenizer"]
    assert main(["inspect", str(tmp_path / "data"), *flags]) == 0
    assert "sample:" in capsys.readouterr().out
