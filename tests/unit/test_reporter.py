"""What a search tells of its estimates: notes, and a process that resumes it."""

import dataclasses

import numpy as np
import pytest

from megatron_fastmix.hypergradient import Products
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.run.sinks import open_sinks
from megatron_fastmix.search.outer_step import OuterResult
from megatron_fastmix.search.reporter import Reporter
from megatron_fastmix.search.start_mixture import start_mixture
from tests.distributed.searches import load

NOISE = "estimates were noise"


def result(advantage, *, error=1.0, counts=(4.0, 4.0, 4.0)) -> OuterResult:
    """Of a step whose single estimates are noise."""
    value, seen = np.array(advantage, float), np.array(counts) > 0
    return OuterResult(
        target_losses=np.array([5.0]),
        target_weights=np.array([1.0]),
        products=Products(
            values=np.where(seen, value, 0.0),
            standard_error=np.where(seen, error, np.nan),
            counts=np.array(counts),
        ),
        target_products=np.array([np.where(seen, value, 0.0)]),
        noise_to_signal=3.0,
        gradient=np.zeros(3),
        advantage=np.where(seen, value, np.nan),
        advantage_standard_error=np.where(seen, error, np.nan),
        group_seen=seen,
        group_advantage=np.where(seen, value, np.nan),
        group_advantage_standard_error=np.where(seen, error, np.nan),
        lr=0.1,
        seconds=0.0,
    )


@pytest.fixture
def tell(search_values, tmp_path, capsys):
    """Tells outer steps, in a process that resumes after `step`; returns what was printed."""
    config = load(search_values)

    def tell(step, results):
        mixture = start_mixture(config, [1, 1, 1])
        sinks = open_sinks(config, RunFolder(tmp_path), step)
        earlier = read_metrics(tmp_path / "metrics.jsonl") if step else []
        with Reporter(config, mixture, sinks, step, tokens=0, earlier=earlier) as report:
            for number, each in enumerate(results, start=step + 1):
                mixture.update(np.zeros(3))
                report.outer(number, each)
            report.end(step + len(results), complete=True)
        return capsys.readouterr().out

    return tell


def test_a_source_without_evidence_is_logged_as_unknown(tell, tmp_path):
    tell(0, [result([1.0, -1.0, 0.0], counts=[4.0, 4.0, 0.0])])
    line = next(li for li in read_metrics(tmp_path / "metrics.jsonl") if li["kind"] == "outer")
    (of_target,) = line["target_products"].values()
    for found in (line["products"], line["advantage"], of_target):
        assert list(found.values()) == [1.0, -1.0, None]


def test_noise_is_said_once_also_by_a_search_that_goes_on(tell):
    noise = [result([0.0, 0.0, 0.0])] * 3
    assert tell(0, noise[:2]).count(NOISE) == 0
    assert tell(2, noise[:1]).count(NOISE) == 1
    assert tell(3, noise).count(NOISE) == 0


def test_sources_that_were_told_apart_before_a_stop_stay_so(tell):
    tell(0, [result([9.0, -9.0, 0.0])])
    assert tell(1, [result([0.0, 0.0, 0.0])] * 4).count(NOISE) == 0


def test_what_probes_lacked_is_counted_over_all_processes(tell):
    lacking = result([0.0, 0.0, 0.0], counts=[4.0, 4.0, 0.0])
    assert "held no sample of" in tell(0, [lacking] * 2)
    said = tell(2, [lacking])
    assert said.count("held no sample of") == 1
    assert "of 3 outer steps" in said


def test_what_an_outer_step_did_before_its_probe_is_its_own_time(search_values, tmp_path):
    config = load(search_values)
    mixture = start_mixture(config, [1, 1, 1])
    sinks = open_sinks(config, RunFolder(tmp_path), 0)
    with Reporter(config, mixture, sinks, 0, tokens=0) as report:
        for step in (1, 2):
            report._last -= 8.0  # as long as the step took, all parts of it
            report.outer_begun(5.0)
            report.inner(step, 1.0, np.ones(3), 0.1, None, 10 * step)
            mixture.update(np.zeros(3))
            report._last -= 2.0
            report.outer(step, dataclasses.replace(result([0.0, 0.0, 0.0]), seconds=2.0))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in lines if line["kind"] == "outer"] == [7.0, 7.0]
    rates = [line["tokens_per_second"] for line in lines if line["kind"] == "inner"]
    assert rates == pytest.approx([10 / 3, 10 / 3], rel=0.1)
