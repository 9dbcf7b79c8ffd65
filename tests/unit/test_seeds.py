"""The average of one search with several seeds."""

import dataclasses
import statistics

import pytest

from megatron_fastmix.report.summary import final_table
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.result.over_seeds import average


def test_the_average_has_the_mean_and_the_spread_over_seeds(make_mixture, tmp_path):
    weights = [(0.5, 0.3, 0.2), (0.6, 0.3, 0.1), (0.7, 0.1, 0.2)]
    mixtures = [
        dataclasses.replace(make_mixture(dict(zip("abc", values, strict=True))), seed=10 + number)
        for number, values in enumerate(weights)
    ]
    mean = average(mixtures)
    write_mixture(tmp_path / "mixture.json", mean)
    assert read_mixture(tmp_path) == mean
    assert mean.seeds == (10, 11, 12)
    for k, source in enumerate(mean.sources):
        values = [run[k] for run in weights]
        assert source.weight == pytest.approx(statistics.fmean(values))
        assert source.weight_std == pytest.approx(statistics.stdev(values))
        epochs = source.weight * mean.token_budget / source.size.loss_tokens
        assert mean.epochs[source.name] == pytest.approx(epochs)
    assert mean.cost["tokens"] == pytest.approx(sum(m.cost["tokens"] for m in mixtures))
    table = final_table(mean, blend_txt="blend.txt", blend_json=None)
    assert "± is the standard error over 3 seeds" in table
