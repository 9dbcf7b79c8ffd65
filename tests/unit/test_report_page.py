"""The report page: what it says, and how it looks to a browser."""

import html.parser
import json
import math
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import matplotlib.image
import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import DataError
from megatron_fastmix.report.alignment import advantage
from megatron_fastmix.report.charts import build_charts
from megatron_fastmix.report.number_texts import short
from megatron_fastmix.report.run_record import find_runs, read_run
from megatron_fastmix.report.scale import ticks
from megatron_fastmix.report.verdict import are_repeats, judge
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.over_seeds import average
from megatron_fastmix.run.metrics import MetricsLog, read_metrics

SOURCES = ("code & <b>", "prose", "noise")


@pytest.fixture
def write_run(tmp_path, make_mixture, with_sizes):
    """A function: writes metrics and result of a search into tmp_path/NAME; returns the folder."""

    def write(name: str, *, seed: int = 1, steps: int = 40, lr: float = 0.1, **changes) -> Path:
        path = tmp_path / name / "metrics.jsonl"
        path.unlink(missing_ok=True)
        logits = [0.0] * len(SOURCES)
        config = {
            "seed": seed,
            "sources": [{"name": n, "path": f"/data/{i}"} for i, n in enumerate(SOURCES)],
            "training": {"train_iters": 40},
            "mixture": {"averaging_fraction": 0.5, "lr": lr},
        }
        initial = dict.fromkeys(SOURCES, 1 / 3)
        with MetricsLog(path) as log:
            log.write(
                "run",
                0,
                sources=SOURCES,
                targets=["exams", "chats"],
                initial_weights=initial,
                config=config,
            )
            for step in range(1, steps + 1):
                losses = dict.fromkeys(SOURCES, 5 - 0.01 * step)
                losses["noise"] = math.nan
                log.write(
                    "inner",
                    step,
                    loss=5.0,
                    source_loss=losses,
                    tokens=step * 64,
                    tokens_per_second=100.0,
                )
                if step % 2 == 0:
                    pull = lr * math.exp(-step / 8)
                    logits = [
                        z + pull * s for z, s in zip(logits, (2 + 0.1 * seed, 0, -2), strict=True)
                    ]
                    total = sum(map(math.exp, logits))
                    weights = [math.exp(z) / total for z in logits]
                    log.write(
                        "outer",
                        step,
                        weights=dict(zip(SOURCES, weights, strict=True)),
                        products=dict(zip(SOURCES, (1.0, 0.5, 0.1), strict=True)),
                        products_standard_error=dict.fromkeys(SOURCES, 0.1),
                        target_loss={"exams": 6 - 0.02 * step, "chats": 4.0},
                        target_weight={"exams": 0.5, "chats": 0.5},
                        noise_to_signal=0.5,
                        seconds=0.1,
                        **changes,
                    )
                if step % 10 == 0:
                    log.write("checkpoint", step, seconds=0.01)
            if steps == 40:
                log.write("end", step, complete=True, training_flops=2e12)
        if steps >= 10:
            write_result(path.parent, seed, steps)
        return path.parent

    def write_result(folder: Path, seed: int, steps: int) -> None:
        history = [
            line["weights"]
            for line in read_metrics(folder / "metrics.jsonl")
            if line["kind"] == "outer"
        ]
        tail = history[-(len(history) // 2) :]
        mixture = make_mixture(
            {name: statistics.fmean(weights[name] for weights in tail) for name in SOURCES},
            seed=seed,
            steps=steps,
            complete=steps == 40,
            token_budget=1000,
        )
        sizes = dict(zip(SOURCES, (100, 200, 400), strict=True))
        mixture = with_sizes(mixture, **{name: {"tokens": n} for name, n in sizes.items()})
        write_mixture(folder / "mixture.json", mixture)

    return write


def page(folder: Path) -> str:
    return (folder / "report" / "report.html").read_text(encoding="utf-8")


class Balance(html.parser.HTMLParser):
    """Counts elements, and refuses a page whose elements are not closed in order."""

    VOID = ("meta", "link", "br", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, int] = {}
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found[tag] = self.found.get(tag, 0) + 1
        self.links += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_but_itself(write_run):
    run = write_run("run")
    assert main(["report", str(run), "--no-png"]) == 0
    parser = Balance()
    parser.feed(page(run))
    assert parser.open == []
    assert parser.found["figure"] >= 6
    # A table beside each chart, for those who cannot see it.
    assert parser.found["details"] >= parser.found["figure"]
    assert all(link.startswith("#") or link == "data:," for link in parser.links)
    assert "http://" not in page(run) and "https://" not in page(run)
    assert "code & <b>" not in page(run)


def test_the_first_screen_answers_which_mixture_how_sure_and_what_it_cost(write_run):
    run = write_run("run")
    main(["report", str(run), "--no-png"])
    text = re.sub(r"<[^>]+>", " ", page(run).split("<nav")[0].split("<body>")[1])
    record = read_run(run / "metrics.jsonl")
    for name, weight in record.mixture.weights.items():
        assert f"{weight:.2f}" in text  # the spread of 0.01 moves the second decimal
        assert f"{record.mixture.epochs[name]:.3g}" in text
    assert "Clearly not a uniform mixture" in text
    assert "One seed" in text
    assert "2e+12" in text
    assert "2.56 k" in text  # the proxy's tokens
    assert "--data-path" in text
    assert sorted(p.name for p in (run / "report").iterdir()) == ["report.html"]


def test_without_a_result_there_are_curves_alone(write_run, make_mixture):
    run = write_run("run", steps=8)
    assert main(["report", str(run), "--no-png"]) == 0
    first, rest = page(run).split("<nav")
    assert "No result yet" in first
    assert "--data-path" not in first
    assert "Weights over time" in rest
    write_mixture(run / "mixture.json", make_mixture({"a": 0.5, "b": 0.5}))
    with pytest.raises(DataError, match="are these the files of one run"):
        read_run(run / "metrics.jsonl")


def test_alignment_is_what_a_source_has_above_the_mixture(write_run):
    products = dict(zip(SOURCES, (3.0, 2.0, 1.0), strict=True))
    run = write_run("run", target_products={"exams": products, "chats": products})
    charts = {
        chart.key: chart
        for charts in build_charts(read_runs([run]), SOURCES).values()
        for chart in charts
    }
    # The first outer step's products were measured at the initial weights, a third each.
    first = {series.name: series.points[0] for series in charts["alignment"].series}
    assert first[SOURCES[0]] == (2, pytest.approx(1.0 - 1.6 / 3))
    assert first[SOURCES[2]] == (2, pytest.approx(0.1 - 1.6 / 3))
    exams = {series.name: series.points[0][1] for series in charts["alignment_exams"].series}
    assert list(exams.values()) == pytest.approx([1, 0, -1])
    # The mean of the first two outer steps; 20 steps make a window of 2.
    record = read_run(run / "metrics.jsonl")
    after = record.outer[0]["weights"]
    second = 1.0 - sum(after[n] * p for n, p in zip(SOURCES, (1.0, 0.5, 0.1), strict=True))
    assert charts["alignment"].series[0].points[1][1] == pytest.approx((1.0 - 1.6 / 3 + second) / 2)


def test_a_source_that_a_probe_lacked_has_no_point_there_and_the_others_their_own(write_run):
    products = dict(zip(SOURCES, (3.0, 2.0, None), strict=True))
    run = write_run("run", target_products={"exams": products})
    record = read_run(run / "metrics.jsonl")
    assert advantage(record, SOURCES[2], "exams") == []
    assert advantage(record, SOURCES[0], "exams")[0] == (2, pytest.approx(0.5))


def test_every_chart_becomes_a_picture(write_run):
    run = write_run("run")
    write_report(read_runs([run]), run / "report")
    for name in ("weights", "alignment", "source_loss", "target_loss_exams", "noise", "throughput"):
        picture = matplotlib.image.imread(run / "report" / f"{name}.png")
        assert picture.std() > 0.01


def test_seeds_are_averaged_and_other_settings_shown_side_by_side(write_run, tmp_path, capsys):
    for seed in (1, 2, 3):
        write_run(f"seeds/seed-{seed}", seed=seed)
    runs = read_runs([tmp_path / "seeds"])
    assert [run.name for run in runs] == ["seed-1", "seed-2", "seed-3"]
    assert are_repeats(runs)
    verdict = judge(runs)
    assert verdict.mixture.seeds == (1, 2, 3)
    singles = [run.mixture.weights["prose"] for run in runs]
    assert verdict.mixture.weights["prose"] == pytest.approx(sum(singles) / 3)
    main(["report", str(tmp_path / "seeds"), "--no-png"])
    assert "the average of 3 seeds" in page(tmp_path / "seeds")
    assert "One seed" not in page(tmp_path / "seeds")
    # A folder's result says which of its seeds it averages.
    write_mixture(tmp_path / "seeds" / "mixture.json", average([run.mixture for run in runs[:2]]))
    assert [run.name for run in read_runs([tmp_path / "seeds"])] == ["seed-1", "seed-2"]
    other = write_run("other", lr=0.05)
    kept, both = page(tmp_path / "seeds"), tmp_path / "both"
    runs = ["report", str(tmp_path / "seeds"), str(other), "--no-png"]
    assert main(runs) == 2
    assert "--output: missing" in capsys.readouterr().err
    assert main([*runs, "--output", str(both)]) == 0
    assert page(tmp_path / "seeds") == kept
    text = (both / "report.html").read_text()
    assert "These are different searches" in text
    assert "mixture.lr" in text and "0.05" in text


def test_runs_of_other_sources_and_targets_overlay_where_they_can(write_run, tmp_path):
    first, second = write_run("first"), write_run("second")
    for path in (second / "metrics.jsonl", second / "mixture.json"):
        text = path.read_text().replace('"noise"', '"web"').replace('"exams"', '"maths"')
        path.write_text(text)
    out = tmp_path / "out"
    assert main(["report", str(first), str(second), "--no-png", "--output", str(out)]) == 0
    text = (out / "report.html").read_text()
    for caption in ("Weights: web", "Weights: noise", "Loss on maths", "Loss on exams"):
        assert caption in text


def test_a_search_that_is_unsure_is_called_so(write_run):
    run = write_run("run", lr=0.0)
    (finding,) = [f for f in judge(read_runs([run])).findings if "uniform" in f.text]
    assert finding.level == "poor"


def test_watching_reloads_until_the_run_ends(write_run, monkeypatch):
    run = write_run("run", steps=20)

    def finish(seconds: float) -> None:
        assert seconds == 3
        assert '<meta http-equiv="refresh" content="3">' in page(run)
        assert "unfinished, 20 of 40 steps" in page(run)
        write_run("run")

    monkeypatch.setattr("time.sleep", finish)
    assert main(["report", str(run), "--watch", "3", "--no-png"]) == 0
    assert "http-equiv" not in page(run)
    assert main(["report", str(run), "--watch", "0"]) == 2


def test_watching_goes_on_to_the_seeds_that_have_not_begun(write_run, tmp_path, monkeypatch):
    write_run("seeds/seed-1", seed=1)
    (tmp_path / "seeds/seed-2").mkdir()
    waits = []

    def begin(seconds: float) -> None:
        waits.append(seconds)
        write_run("seeds/seed-2", seed=2)

    monkeypatch.setattr("time.sleep", begin)
    assert main(["report", str(tmp_path / "seeds"), "--watch", "--no-png"]) == 0
    assert len(waits) == 1
    assert "the average of 2 seeds" in page(tmp_path / "seeds")


@pytest.mark.parametrize("there", [True, False])
def test_watching_waits_for_a_search_that_has_not_begun(write_run, tmp_path, monkeypatch, there):
    if there:
        (tmp_path / "run").mkdir()
    assert main(["report", str(tmp_path / "run")]) == 2
    monkeypatch.setattr("time.sleep", lambda seconds: write_run("run"))
    assert main(["report", str(tmp_path / "run"), "--watch", "--no-png"]) == 0


def test_all_seeds_of_a_search_have_the_page_of_their_folder(write_run, tmp_path):
    seeds = [str(write_run(f"seeds/seed-{seed}", seed=seed)) for seed in (1, 2, 3)]
    assert main(["report", *seeds, "--no-png"]) == 0
    assert "the average of 3 seeds" in page(tmp_path / "seeds")
    assert main(["report", *seeds[:2], "--no-png"]) == 2


def test_a_run_that_has_just_begun_has_a_report(write_run, tmp_path):
    run = write_run("run", steps=1)
    assert main(["report", str(run)]) == 0
    assert "No outer step has been taken" in page(run)


def test_metrics_of_other_releases_are_read(write_run, tmp_path):
    run = write_run("run", trust={"prose": 0.5}, effective_samples=7.5, target_products={})
    main(["report", str(run), "--no-png"])
    assert "effective samples" in page(run)
    lines = [
        {"kind": "run", "step": 0, "weights": {"a": 0.5, "b": 0.5}, "train_iters": 2},
        {"kind": "outer", "step": 1, "weights": {"a": 0.6, "b": 0.4}},
        {"kind": "surprise", "step": 1},
        {"kind": "inner", "step": 2},
    ]
    path = tmp_path / "old" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", str(path), "--output", str(tmp_path / "old"), "--no-png"]) == 0
    text = (tmp_path / "old" / "report.html").read_text()
    assert "not logged" in text and "The metrics hold no configuration" in text


def test_time_is_split_by_what_it_was_spent_on(write_run):
    run = write_run("run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = {"inner": 2.0, "outer": 5.0, "checkpoint": 0.5, "end": 0.0, "run": 0.0}
    clock = 0.0
    for line in lines:
        clock += spent[line["kind"]]
        # An hour of standstill before the run was resumed from its second checkpoint.
        clock += 3600 if line["kind"] == "inner" and line["step"] == 21 else 0
        line["time"] = clock
        if line["kind"] == "inner":
            line["data_seconds"] = 0.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_run(run / "metrics.jsonl").seconds
    # 39 of 40 inner steps: the one after the standstill cannot be timed.
    assert found == pytest.approx({"inner": 78 - 20, "outer": 100, "checkpoint": 2, "data": 20})
    for line in lines:
        if line["kind"] == "outer":  # 1.5 s of the inner step before it were its own
            line["seconds"] = 6.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_run(run / "metrics.jsonl").seconds
    assert found == pytest.approx({"inner": 28, "outer": 130, "checkpoint": 2, "data": 20})


def test_a_report_replaces_only_a_report(tmp_path, write_run, capsys):
    run, mine = str(write_run("run")), tmp_path / "web" / "report.html"
    call = ["report", run, "--no-png", "--output", str(mine.parent)]
    assert main(call) == main(call) == 0
    mine.write_text("<html>my page of megatron_fastmix</html>")
    assert main(call) == 2
    assert f"--output: {mine} is there, and no report" in capsys.readouterr().err
    assert mine.read_text() == "<html>my page of megatron_fastmix</html>"


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no metrics.jsonl in it" in capsys.readouterr().err
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "inner", "step": 1}\n')
    with pytest.raises(DataError, match="no line of kind `run`"):
        read_run(path)
    path.write_text(
        '{"kind": "run", "step": 0, "initial_weights": {"a": 1.0}}\n'
        '{"kind": "outer", "step": 1, "weights": {"b": 1.0}}\n'
    )
    with pytest.raises(DataError, match="are these the metrics of one run"):
        read_run(path)
    assert find_runs([path, path]) == [path]
    assert main(["report", str(path), "--output", str(path)]) == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.3, 7.6, [4, 5, 6, 7]),
        (-0.35, 0.45, [-0.2, 0, 0.2, 0.4]),
        (2.0, 2.0, [2.0]),
    ],
)
def test_axis_marks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short():
    assert [short(v) for v in (0, 0.25, 12345.6, 1e9, 0.00012)] == [
        *("0", "0.25", "12,346", "1.00e9", "1.20e-4")
    ]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian's package has it)")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_browser_shows_it_without_errors(write_run, tmp_path, width, height):
    run = write_run("run")
    write_report(read_runs([run]), run / "report", pictures=False)
    picture = tmp_path / "screen.png"
    # The page reports about itself after it has been laid out.
    probe = (
        "<script>onload = () => { const wide = document.documentElement.scrollWidth; "
        "document.querySelector('.plot').dispatchEvent(new PointerEvent('pointermove', "
        "{clientX: innerWidth / 2})); "
        "console.log('PROBE', JSON.stringify([innerWidth, wide, "
        "document.querySelector('.tip').textContent.startsWith('step ')])); }</script>"
    )
    file = run / "report" / "report.html"
    file.write_text(file.read_text().replace("</body>", probe + "</body>"))
    # A frame, because a window of its own is never laid out narrower than 500 pixels.
    frame = tmp_path / "frame.html"
    style = f"border:0;width:{width}px;height:{height}px"
    frame.write_text(
        f'<body style="margin:0"><link rel="icon" href="data:,"><iframe src="{file.as_uri()}" '
        f'style="{style}"></iframe></body>'
    )
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={width},{height}", f"--screenshot={picture}", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(said) == 1 and f"PROBE [{width},{width},true]" in said[0], done.stderr
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[1] == width
    assert pixels.std() > 0.01
