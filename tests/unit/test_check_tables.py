"""Regressions on tables in the format of RegMix's, of losses that follow a planted law."""

import csv
import json

import numpy as np
import pytest

from megatron_fastmix.cli import main as cli
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.baselines.regressors import REGRESSORS
from megatron_fastmix.lab.baselines.settings import RegMixSettings
from megatron_fastmix.lab.benchmarks.check_tables import correlations, simulated_best
from megatron_fastmix.lab.benchmarks.regmix_tables import read_tables

SOURCES = ("arxiv", "github", "enron_emails", "pile_cc")
SLOPES = np.array([0.5, 1.0, -0.3, -1.0])


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def folder(tmp_path):
    """A clone with its tables in data/; rows of losses are in another order than the mixtures."""
    generator = np.random.default_rng(0)
    data = tmp_path / "clone" / "data"
    data.mkdir(parents=True)
    for name, count, end in (
        ("train", 128, "1m"),
        *(("test", count, size) for count, size in ((64, "1m"), (64, "60m"), (32, "1B"))),
    ):
        mixtures = generator.dirichlet(np.ones(4), count)
        losses = 4 + np.exp(mixtures @ SLOPES) + generator.normal(0, 0.005, count)
        columns = ["index", *(f"train_the_pile_{source}" for source in SOURCES)]
        write(
            data / f"{name}_mixture_{end}.csv",
            columns,
            [[i, *mixture] for i, mixture in enumerate(mixtures.tolist())],
        )
        columns = ["index", "metric/the_pile_pile_cc_val_loss", "metric/the_pile_arxiv_val_loss"]
        rows = [[i, loss, 0.0] for i, loss in enumerate(losses.tolist())]
        write(data / f"{name}_pile_loss_{end}.csv", columns, rows[::-1])
    return tmp_path / "clone"


def test_rows_belong_together_by_their_index(folder):
    tables = read_tables(folder, "pile_cc")
    assert tables.train.sources == SOURCES
    expected = 4 + np.exp(tables.train.mixtures @ SLOPES)
    np.testing.assert_allclose(tables.train.losses, expected, atol=0.03)
    assert {size: len(test.losses) for size, test in tables.tests.items()} == {
        "1m": 64,
        "60m": 64,
        "1B": 32,
    }
    np.testing.assert_allclose(tables.token_shares.sum(), 1)
    # Its folder alone is as good.
    assert read_tables(folder / "data", "pile_cc").train.sources == SOURCES


def test_predictions_are_ranked_and_the_best_simulated_mixture_is_of_the_useful_source(folder):
    tables = read_tables(folder, "pile_cc")
    for fit in REGRESSORS.values():
        predict = fit(tables.train.mixtures, tables.train.losses)
        assert min(correlations(predict, tables).values()) > 95
        mixture = simulated_best(predict, tables, RegMixSettings(candidates=5000), seed=0)
        assert mixture[SOURCES.index("pile_cc")] > 0.85
    flat = correlations(lambda mixtures: -mixtures @ SLOPES, tables)
    assert max(flat.values()) < -95


def test_the_limit_of_reads_keeps_a_line_from_the_smallest_source(folder):
    tables = read_tables(folder, "pile_cc")
    best = SOURCES.index("enron_emails")

    def predict(mixtures):
        return -mixtures[:, best]

    free = RegMixSettings(candidates=20_000, max_reads=1e9)
    assert simulated_best(predict, tables, free, seed=0)[best] > 0.3
    limited = simulated_best(predict, tables, RegMixSettings(candidates=20_000), seed=0)
    assert limited[best] <= 15 * tables.token_shares[best] < 0.1


def test_the_command_prints_and_writes_every_measurement(folder, tmp_path, capsys):
    file = tmp_path / "out.json"
    arguments = ["check-tables", "--regmix", str(folder), "--proxies", "16", "--draws", "2"]
    arguments += ["--set", "regmix.candidates=2000", "--json", str(file)]
    assert cli.main(arguments) == 0
    assert "lightgbm, 16 mixtures, mean of 2: Spearman at 1B" in capsys.readouterr().out
    written = json.loads(file.read_text())
    rows = {row["figure"]: row for row in written["rows"]}
    assert rows["lightgbm, 128 mixtures: Spearman at 1B"]["reach"] == 97.1
    assert rows["linear, 128 mixtures: Spearman at 60m"]["better"] == "higher"
    assert rows["log-linear, 128 mixtures: Spearman at 1m"]["value"] > 95
    assert rows["linear, 16 mixtures, standard deviation: Spearman at 1m"]["value"] > 0
    assert "lightgbm" in written["versions"]
    assert written["settings"]["regmix"]["candidates"] == 2000
    assert set(written["machine"]) >= {"processor", "cores"}


def test_what_is_no_table_is_refused(folder, tmp_path, capsys):
    with pytest.raises(ConfigError, match="found 'github'; choose among pile_cc, arxiv"):
        read_tables(folder, "github")
    with pytest.raises(DataError, match=r"give a clone of github\.com/sail-sg/regmix"):
        read_tables(tmp_path, "pile_cc")
    assert cli.main(["check-tables", "--regmix", str(folder), "--proxies", "1000"]) == 2
    assert "the table has 128 mixtures" in capsys.readouterr().err
    assert cli.main(["check-tables", "--regmix", str(folder), "--proxies", "10"]) == 2
    assert "--proxies: found 10; use 11 or more" in capsys.readouterr().err
    file = folder / "data" / "test_mixture_1B.csv"
    text = file.read_text()
    file.write_text(text.replace("train_the_pile_arxiv", "train_the_pile_magic"))
    with pytest.raises(DataError, match=r"test_mixture_1B\.csv: its sources are others"):
        read_tables(folder, "pile_cc")
    file.write_text(text + "32,1,a,0,0\n")
    losses = folder / "data" / "test_pile_loss_1B.csv"
    losses.write_text(losses.read_text() + "32,1,1\n")
    with pytest.raises(DataError, match="a value is no number"):
        read_tables(folder, "pile_cc")
    file.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no table of RegMix"):
        read_tables(folder, "pile_cc")
