"""The verdict on runs that log advantages: every seed is judged by itself."""

from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.report.run_record import read_run
from megatron_fastmix.report.verdict import are_repeats, judge, optimality
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.run.metrics import MetricsLog

SOURCES = ("code", "prose", "junk")


@pytest.fixture
def write_run(tmp_path):
    """A function: a run of `steps` outer steps in which junk has the mean advantage `junk`."""

    def write(seed: int, *, junk: float = 0.0, steps: int = 80, noise: float = 0.5) -> Path:
        generator = np.random.default_rng(seed)
        path = tmp_path / f"seed-{seed}" / "metrics.jsonl"
        start = dict.fromkeys(SOURCES, 1 / 3)
        config = {"seed": seed, "sources": [{"name": name} for name in SOURCES]}
        with MetricsLog(path) as log:
            log.write("run", 0, sources=SOURCES, initial_weights=start, config=config)
            for step in range(1, steps + 1):
                values = [0.0, 0.0, junk] + noise * generator.normal(size=3)
                if step <= steps // 2:
                    values += [3.0, 0.0, -3.0]
                log.write(
                    "outer",
                    step,
                    weights=dict(zip(SOURCES, (0.8, 0.15, 0.05), strict=True)),
                    advantage=dict(zip(SOURCES, values, strict=True)),
                    advantage_standard_error=dict.fromkeys(SOURCES, noise),
                    noise_to_signal=1.5,
                )
            log.write("end", steps, complete=True)
        return path

    return write


def test_a_settled_run_is_green_though_its_single_estimates_are_noise(write_run):
    run = read_run(write_run(1))
    found = optimality(run)
    assert found is not None
    assert found.status == "settled"
    texts = {finding.text: finding.level for finding in judge([run]).findings}
    assert texts[found.text] == "good"
    assert all(level == "good" for text, level in texts.items() if "standard error of" in text)


def test_a_run_that_is_not_at_an_optimum_names_the_source_and_the_remedy(write_run):
    verdict = judge([read_run(write_run(1, junk=2.0))])
    (finding,) = [f for f in verdict.findings if "junk should gain" in f.text]
    assert finding.level == "fair"
    assert "training.train_iters" in finding.text
    assert verdict.level == "fair"


def test_seeds_that_settled_do_not_cover_one_that_has_not(write_run):
    settled = [read_run(write_run(seed)) for seed in (1, 2, 3)]
    # Without a mixture.json there is no average, which is what "One seed" is about.
    rest = [found for found in judge(settled).findings if "One seed" not in found.text]
    assert {found.level for found in rest} == {"good"}
    verdict = judge([*settled, read_run(write_run(4, junk=2.0))])
    assert verdict.level == "fair"
    (finding,) = [f for f in verdict.findings if f.level == "fair" and "One" not in f.text]
    assert finding.text.startswith("Seed 4: Not at an optimum: junk")


def test_the_same_seed_again_is_no_repeat(write_run):
    one, other, again = (read_run(write_run(seed)) for seed in (1, 2, 1))
    assert are_repeats([one, other])
    assert not are_repeats([one, other, again])


def test_a_short_run_is_not_green(write_run):
    verdict = judge([read_run(write_run(1, steps=20))])
    (finding,) = [found for found in verdict.findings if "short" in found.text]
    assert finding.level == verdict.level == "poor"


def test_a_mixture_away_from_uniform_is_called_clear_only_where_the_run_settled(
    write_run, make_mixture
):
    mixture = make_mixture(dict(zip(SOURCES, (0.8, 0.15, 0.05), strict=True)))
    levels = {}
    for steps in (80, 20):
        metrics = write_run(steps, steps=steps)
        write_mixture(metrics.parent / "mixture.json", mixture)
        findings = judge([read_run(metrics)]).findings
        (levels[steps],) = [f.level for f in findings if "from uniform on average" in f.text]
    assert levels == {80: "good", 20: "fair"}


def test_noise_from_beginning_to_end_is_still_called_so(write_run):
    run = read_run(write_run(1, noise=500.0))
    assert any("noise, unless" in finding.text for finding in judge([run]).findings)
