"""The table of methods in the evidence says what its rows say, and needs no data."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from megatron_fastmix.cli import main as cli
from megatron_fastmix.lab.baselines.registry import METHODS, proxies_of
from megatron_fastmix.lab.baselines.settings import BaselineSettings
from megatron_fastmix.lab.comparison import over_scenarios
from megatron_fastmix.lab.comparison.method_lines import behind, judge, training_ratio
from megatron_fastmix.lab.comparison.method_plot import SEARCHED, label
from megatron_fastmix.lab.comparison.methods import MethodComparison
from megatron_fastmix.lab.comparison.scenario import load_scenario

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "tools" / "method_rows"
COLUMNS = (
    *("pretrain_one_target", "pretrain_targets_mean", "pretrain_targets_worst"),
    *("pretrain_questions", "fine_tuning"),
)


def lines_of(name, seeds, tmp_path, folder="methods", methods=None):
    scenario = load_scenario(ROOT / "configs" / folder / f"{name}.yaml")
    comparison = MethodComparison(
        name,
        scenario,
        scenario.choose(methods, name),
        seeds=seeds,
        rows=ROWS,
        work=tmp_path,
        workers=1,
    )
    return {line.method: line for line in comparison.lines()}


@pytest.fixture(scope="module")
def written():
    """The cells of the table by method, without emphasis and with the ASCII minus."""
    text = (ROWS / "README.md").read_text().replace("**", "").replace("−", "-")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    proxies = {method: proxies_of(method, BaselineSettings()) for method in SEARCHED}
    by_words = {label(method, {n} if n else ()): method for method, n in proxies.items()}
    return {
        method: row[1:]
        for row in cells
        if (method := by_words.get(row[0], row[0])) in METHODS and len(row) == len(COLUMNS) + 2
    }


def test_the_table_of_methods_is_that_of_the_rows(written, tmp_path):
    methods = {
        method
        for name in COLUMNS
        for method in load_scenario(ROOT / "configs" / "methods" / f"{name}.yaml").methods
    }
    assert sorted(written) == sorted(methods)
    for column, name in enumerate(COLUMNS):
        sign = "+" if name == "pretrain_targets_worst" else ""
        lines = lines_of(name, 3, tmp_path)
        for method in methods:
            line = lines.get(method)
            expected = f"{line.loss:{sign}.3f} ± {line.deviation:.3f}" if line else "–"
            assert written[method][column] == expected, (name, method)


def test_ways_to_move_the_mixture_are_compared_seed_by_seed(tmp_path):
    names = ("one_target", "three_targets", "worst", "questions", "fine_tuning", "conflict")
    tables = {
        name: lines_of(f"outer_steps_{name}", 6, tmp_path, folder="outer_steps") for name in names
    }
    pooled = over_scenarios.differences({name: list(t.values()) for name, t in tables.items()})
    all_six = {each.method: f"{each.mean:+.3f} ± {each.error:.3f}" for each in pooled}
    text = (ROWS / "README.md").read_text().replace("−", "-")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    known = {"`adam_loss`", "`mirror_adam`", "`lr=0.3`", "`lr=0.3_linear`", "`probe_x4`"}
    assert known <= {row[0] for row in rows}
    for method, *cells in rows:
        expected = []
        for lines in tables.values():
            line = lines.get(method.strip("`"))
            pair = behind(line, lines["fastmix"]) if line else None
            expected.append(f"{pair[0]:+.3f} ± {pair[1]:.3f}" if pair else "–")
        assert cells == [*expected, all_six.get(method.strip("`"), "–")], method


def test_the_budget_is_compared_seed_by_seed(tmp_path):
    lines = lines_of("token_budget", 6, tmp_path, folder="studies")
    text = (ROWS / "README.md").read_text().replace("−", "-")
    for method in ("at_most_15_reads", "no_budget", "uniform", "at_most_4_reads"):
        line = lines[method]
        difference, error = behind(line, lines["fastmix"])
        cells = f"{line.weights['docstrings']:.2f} | {line.loss:.3f} ± {line.deviation:.3f}"
        assert f"{cells} | {difference:+.3f} ± {error:.3f} |" in text, method


def cost(line, ours):
    """Of a search, as the tables have it."""
    ratio = line.flops / ours.flops
    return f"{ratio:.{1 if ratio > 1 else 2}f}" if ratio else "0"


def test_the_front_page_is_that_of_the_rows(tmp_path):
    text = (ROOT / "README.md").read_text().replace("−", "-")
    tables = {name: lines_of(name, 6, tmp_path) for name in COLUMNS}
    pooled = over_scenarios.differences({name: list(t.values()) for name, t in tables.items()})
    assert not any(each.beyond and each.mean < 0 for each in pooled)
    of_five = {each.method: f"{each.mean:.3f} ± {each.error:.3f}" for each in pooled}
    small, large = tables["pretrain_targets_mean"], lines_of("pretrain_large", 6, tmp_path)
    names = {
        "uniform": "uniform",
        "proportional": "proportional",
        "temperature": "temperature",
        "UniMax, at most 4 reads": "unimax",
        "random draw": "random_draw",
        "online data mixing": "odm",
        "DoReMi": "doremi",
        "DoGE": "doge",
        "mixing law, 64 proxies": "mixing_law",
        "RegMix, LightGBM, 64 proxies (32)": "regmix",
    }
    for written, name in names.items():
        costs = [cost(t[name], t["fastmix"]) for t in (small, large) if name in t]
        costs = f"{costs[0]} ({costs[1]})" if len(costs) > 1 and costs[1] != "0" else costs[0]
        of_many = "–"
        if name in large:
            difference, error = behind(large[name], large["fastmix"])
            of_many = f"{difference:.3f} ± {error:.3f}"
        row = f"| {written} | {of_five.get(name, '–')} | {of_many} | {costs} |"
        assert row in text, name


def test_the_larger_scenario_is_that_of_the_rows(tmp_path):
    lines = lines_of("pretrain_large", 6, tmp_path)
    text = " ".join((ROWS / "README.md").read_text().split())
    ours = lines["fastmix"]
    assert (
        f"| **FastMix** | {len(ours.losses)} | {ours.loss:.3f} ± {ours.deviation:.3f} | | 1 |"
        in text
    )
    names = {
        "DoGE": "doge",
        "RegMix, 32 proxies, LightGBM": "regmix",
        "UniMax, at most 4 reads": "unimax",
        "random draw": "random_draw",
        "proportional": "proportional",
        "uniform": "uniform",
    }
    for written, name in names.items():
        line = lines[name]
        difference, error = behind(line, ours)
        row = f"| {written} | {len(line.losses)} | {line.loss:.3f} ± {line.deviation:.3f} "
        row += f"| {difference:+.3f} ± {error:.3f} | {cost(line, ours)} |"
        assert row.replace("-", "−") in text
    difference, error = behind(lines["unimax"], ours)
    assert f"by {difference / error:.1f} standard errors" in text
    for name, source, said in (
        ("doge", "docstrings", "(docstrings"),
        ("regmix", "python_bare", "Python without docstrings ("),
    ):
        theirs, same = lines[name].weights[source], ours.weights[source]
        assert f"{said} {theirs:.2f}; {same:.2f})".replace("( ", "(") in text
    regmix = lines["regmix"]
    by_seed = [regmix.weights_by_seed[seed]["torch_code"] for seed in (1, 2, 3)]
    assert "torch's code {:.2f}, {:.2f} and {:.2f},".format(*by_seed) in text
    assert f"(RegMix {regmix.weights['noise']:.2f}) and the" in text
    theirs, same = (fmean(line.distances(line)) for line in (regmix, ours))
    assert f"have {theirs:.2f} of their mixtures on other sources, of FastMix {same:.2f}:" in text
    assert f"{training_ratio(regmix, ours):.0f} times the training" in text
    _, spread = judge(list(lines.values()))
    assert f"as far apart by seed as {spread:.2f} of the gap." in text
    helpers = ("docstrings", "sympy_code", "python_bare")
    assert ours.weights["noise"] < 0.001
    assert 0.7 < sum(ours.weights[name] for name in helpers) < 0.8


def test_equal_lengths_and_schedules_are_those_of_the_rows(tmp_path):
    text = (ROWS / "README.md").read_text().replace("−", "-").replace("**", "")
    lines = lines_of("equal_lengths", 6, tmp_path, folder="studies")
    proxies = lines["random_search"]
    for method in ("fastmix_short_often", "fastmix", "fastmix_short"):
        line = lines[method]
        training, flops = (
            f"1/{ratio:.1f}".removesuffix(".0")
            for ratio in (
                proxies.tokens / line.tokens,
                proxies.flops / line.flops,
            )
        )
        assert f"| {training} | {flops} | {line.loss:.3f} ± {line.deviation:.3f} |" in text, method
    schedules = "two_phases,continuous,uniform"
    for scenario in ("pretrain_targets_mean", "pretrain_one_target"):
        lines = lines_of(scenario, 6, tmp_path, methods=f"fastmix,{schedules}")
        for method in schedules.split(","):
            line = lines[method]
            difference, error = behind(line, lines["fastmix"])
            loss = f"{line.loss:.3f} ± {line.deviation:.3f}"
            assert f"| {loss} | {difference:+.3f} ± {error:.3f} |" in text, (scenario, method)


def test_length_and_start_are_those_of_the_rows(tmp_path):
    text = (ROWS / "README.md").read_text().replace("−", "-")
    lines = lines_of("length_and_start", 6, tmp_path, folder="studies")
    proxies, ours = lines["mixing_law"], lines["fastmix"]
    for method in ("mixing_law", "steps_128", "fastmix", "steps_512", "from_law"):
        line = lines[method]
        training = f"1/{proxies.tokens / line.tokens:.1f}".removesuffix(".0")
        pair = behind(line, ours) if line is not ours else None
        difference = f"{pair[0]:+.3f} ± {pair[1]:.3f} |" if pair else "|"
        cells = (
            training.removeprefix("1/") if line is proxies else training,
            f"{line.weights['awscli']:.2f}",
            f"{line.loss:.3f} ± {line.deviation:.3f}",
            difference,
        )
        assert f"| {' | '.join(cells)}" in text, method
    assert round(proxies.flops / lines["steps_128"].flops) == 5


LENGTHS = (
    *("1x32_400", "1x32_800", "1x32_1600", "2x64_400", "2x64_800"),
    *("3x96_400", "3x96_800", "3x96_1600"),
)


def test_what_travels_is_that_of_the_rows(tmp_path):
    text = (ROWS / "README.md").read_text().replace("−", "-")
    lines = lines_of("proxy_sizes_three_targets", 3, tmp_path, folder="studies")
    ours = lines["fastmix"]
    assert f"have {fmean(ours.distances(ours)):.2f}:" in text
    for method, line in lines.items():
        pair = behind(line, ours) if line is not ours else None
        cells = (
            f"{line.flops / ours.flops:.2g}",
            f"{fmean(line.distances(ours)):.2f}",
            f"{pair[0]:+.3f} ± {pair[1]:.3f} |" if pair else "|",
        )
        assert f"| {' | '.join(cells)}" in text, method
    lines = lines_of("proxy_sizes", 3, tmp_path, folder="studies")
    assert sorted(round(fmean(lines[name].distances(lines["fastmix"])), 2) for name in LENGTHS) == [
        *(0.14, 0.15, 0.17, 0.19, 0.21, 0.22, 0.26, 0.27)
    ]


def test_rivals_are_compared_seed_by_seed(tmp_path):
    text = (ROWS / "README.md").read_text().replace("−", "-")
    names = {
        "temperature": "temperature (three)",
        "odm": "online data mixing (three)",
        "doremi": "DoReMi (three)",
        "doge": "DoGE (three)",
        "climb": "CLIMB, 64 proxies (three)",
        "regmix": "RegMix, 64 proxies, LightGBM (three)",
        "mixing_law": "mixing law, 64 proxies (three)",
    }
    tables = [lines_of(name, 3, tmp_path) for name in COLUMNS]
    pooled = over_scenarios.differences(
        {name: list(lines.values()) for name, lines in zip(COLUMNS, tables, strict=True)}
    )
    for method, name in names.items():
        cells = []
        for lines in tables:
            pair = behind(lines[method], lines["fastmix"]) if method in lines else None
            cells.append(f"{pair[0]:.3f} ± {pair[1]:.3f}" if pair else "–")
        of_all = [each for each in pooled if each.method == method]
        cells.append(f"{of_all[0].mean:.3f} ± {of_all[0].error:.3f}" if of_all else "–")
        assert f"| {name} | {' | '.join(cells)} |" in text, method


def test_the_settings_are_compared_seed_by_seed(tmp_path):
    lines = lines_of("ablations", 6, tmp_path)
    text = (ROWS / "README.md").read_text().replace("−", "-")
    ours = lines["fastmix"]
    assert f"{ours.loss:.3f}" in text
    for setting, said in (
        *((f"inner_steps={n}", rf"\b{n}: ") for n in (1, 5, 20, 40)),
        *((f"lr={lr}", f"lr {lr}: ") for lr in ("0.25", "1")),
        *((f"optimizer=adam_lr={lr}", f"Adam {lr}: ") for lr in ("0.1", "0.5")),
        ("optimizer=mirror_descent", "mirror_descent 1000: "),
        ("optimizer=sgd", "SGD 5000: "),
        *((f"estimator={name}", f"{name}: ") for name in ("per_source", "last_layer")),
        ("preconditioner=adam", r"\| adam: "),
        *((f"beta={beta}", rf"[|;] {beta}: ") for beta in ("0.1", "0.2", "0.3")),
        *((f"lambda={value}", f"{value}: ") for value in ("1e-5", "1e-4")),
        ("probe=even", "even: "),
        ("weighting=sampling", "sampling: "),
        ("averaging=last", "last iterate: "),
        ("averaging=all", "; all: "),
        ("proxy=1x32", "1 × 32: "),
        ("proxy=4x128", "4 × 128: "),
        ("uniform", r"\(the uniform mixture\) \| \| "),
    ):
        difference, error = behind(lines[setting], ours)
        assert re.search(rf"{said}{re.escape(f'{difference:+.2f} ± {error:.2f}')}", text), setting


def test_the_judge_is_as_sharp_as_is_said(tmp_path):
    text = " ".join((ROWS / "README.md").read_text().split())
    shares = [f"{judge(list(lines_of(name, 3, tmp_path).values()))[1]:.2f}" for name in COLUMNS]
    assert f"by seed as {', '.join(shares[:-1])} and {shares[-1]} of the gap" in text
    _, share = judge(list(lines_of("pretrain_large", 6, tmp_path).values()))
    assert f"by seed as {share:.2f} of the gap" in text


def test_the_command_needs_no_data(capsys, monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.chdir(tmp_path)
    made = tmp_path_factory.mktemp("figures") / "figures.json"
    files = [str(file) for file in sorted((ROOT / "configs" / "methods").glob("*.yaml"))]
    arguments = ["compare-methods", "--table-only", "--output", str(ROWS), "--scenario", *files]
    assert cli.main([*arguments, "--json", str(made)]) == 0
    # Of those who made the rows, not of who reads them.
    assert json.loads(made.read_text())["versions"]["megatron-fastmix"] == "0.1.0, 0.2.0"
    assert re.search(r"^doge +4\.3175  ± 0\.0297 +3 +", capsys.readouterr().out, re.M)
    assert list(tmp_path.iterdir()) == []
