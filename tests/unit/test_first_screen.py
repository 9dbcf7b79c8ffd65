"""What the report's first screen says: gains, the capped mixture, commands; numbers against sums
that are worked out here."""

import dataclasses
import json
import re

import numpy as np
import pytest

from megatron_fastmix.batch.drawn_probe import draw_probe
from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.blend_weights import read_blend_weights
from megatron_fastmix.export.paths import map_path, read_path_map
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.mixture.simplex import softmax
from megatron_fastmix.report.charts import build_charts
from megatron_fastmix.report.closing import closing_lines
from megatron_fastmix.report.commands import next_commands
from megatron_fastmix.report.first_screen import cost_facts, first_screen
from megatron_fastmix.report.gains import compare_gains
from megatron_fastmix.report.measured_gain import Measurements
from megatron_fastmix.report.name_groups import name_groups
from megatron_fastmix.report.number_texts import amount, decimals, share, with_error
from megatron_fastmix.report.predicted_gain import Gain, predict
from megatron_fastmix.report.run_record import read_run, run_folder
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.report.verdict import judge
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.result.over_seeds import average
from megatron_fastmix.result.rounding import written_weights
from megatron_fastmix.run.metrics import MetricsLog
from tests.unit.report_runs import INNER, write_search

NAMES = ("web", "code", "maths")


@pytest.fixture
def run(tmp_path):
    """The record of a finished search."""
    return read_run(write_search(tmp_path / "run", NAMES) / "metrics.jsonl")


def test_the_predicted_gain_is_the_sum_over_the_search(run):
    learned, other = run.mixture.weights, run.mixture.uniform
    found = predict([run], learned, other)
    by_hand = sum(
        INNER * 1e-3 * sum((learned[n] - other[n]) * line["products"][n] for n in NAMES)
        for line in run.outer
    )
    assert found.value == pytest.approx(by_hand)
    assert found.steps == INNER * len(run.outer)
    moved = np.array([learned[n] - other[n] for n in NAMES])
    alone = INNER * 1e-3 * 0.2 * np.sqrt(len(run.outer) * (moved**2).sum())
    assert found.error >= alone * (1 - 1e-12)  # the products' own errors at least
    assert predict([run], other, learned).value == pytest.approx(-by_hand)
    assert predict([run], learned, learned).value == 0


def test_the_prediction_is_what_gradient_descent_on_a_quadratic_gains(tmp_path):
    """One step: ℓ(θ) = ½|θ − t|², L_k = ½|θ − c_k|², exactly P_k = ⟨θ − t, θ − c_k⟩."""
    rng = np.random.default_rng(3)
    theta, target, centres, lr = (
        rng.normal(size=4),
        rng.normal(size=4),
        rng.normal(size=(2, 4)),
        1e-4,
    )
    products = (theta - centres) @ (theta - target)
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write("run", 0, initial_weights={"a": 0.5, "b": 0.5})
        log.write("inner", 1, lr=lr)
        values = dict(zip("ab", products.tolist(), strict=True))
        log.write("outer", 1, weights={"a": 0.8, "b": 0.2}, products=values)
    found = predict(
        [read_run(tmp_path / "metrics.jsonl")], {"a": 0.8, "b": 0.2}, {"a": 0.5, "b": 0.5}
    )

    def loss_after(weights):
        moved = theta - lr * np.array(weights) @ (theta - centres)
        return 0.5 * ((moved - target) ** 2).sum()

    assert found.value == pytest.approx(loss_after([0.5, 0.5]) - loss_after([0.8, 0.2]), rel=1e-2)
    assert found.error is None  # one step tells no error


@pytest.mark.parametrize("learn", ["sources", "groups"])
def test_a_drawn_probe_predicts_the_gain_that_a_whole_one_would(tmp_path, learn):
    """20 sources, or 10 groups of 2, of which a probe holds 6 samples."""
    rng, names = np.random.default_rng(0), [f"s{k}" for k in range(20)]
    groups = [f"g{k // 2}" if learn == "groups" else names[k] for k in range(20)]
    initial = np.tile([0.02, 0.08], 10)
    grouping = Grouping.of(groups, initial)
    truth = 3.0 + rng.normal(size=20)
    after = grouping.source_weights(softmax(grouping.sums(grouping.shares * truth)))
    sources = [{"name": n, "group": g} for n, g in zip(names, groups, strict=True)]
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        config = {"hypergradient": {"probe_samples": 6}, "sources": sources}
        start = dict(zip(names, initial.tolist(), strict=True))
        log.write("run", 0, initial_weights=start, config=config | {"mixture": {"learn": learn}})
        for step in range(1, 801):
            counts = draw_probe(6, grouping, rng)
            noise = rng.normal(size=20) / np.sqrt(np.maximum(counts, 1))
            log.write("inner", step, lr=1e-3)
            log.write(
                "outer",
                step,
                weights=dict(zip(names, after.tolist(), strict=True)),
                products=dict(zip(names, np.where(counts, truth + noise, np.nan), strict=True)),
                probe_samples=dict(zip(names, counts.tolist(), strict=True)),
            )
    found = predict(
        [read_run(tmp_path / "metrics.jsonl")], dict(zip(names, after, strict=True)), start
    )
    expected = 800 * 1e-3 * (after - initial) @ truth
    assert found.steps == 800
    assert abs(found.value - expected) < 2 * found.error
    assert found.error < 0.25 * abs(expected)


def test_runs_that_share_no_folder_get_no_commands_of_one(tmp_path):
    """Searches of several seeds that a launcher started each by itself."""
    folders = [tmp_path / "a" / "s1", tmp_path / "b" / "s2"]
    runs = [
        read_run(write_search(folder, NAMES, seed=seed) / "metrics.jsonl")
        for seed, folder in enumerate(folders, start=1)
    ]
    tokenizer = {"tokenizer_type": "NullTokenizer", "tokenizer_model": None, "vocab_size": 9}
    config = {"tokenizer": tokenizer, "data": {"eod_mask_loss": True, "reset_position_ids": False}}
    mixture = dataclasses.replace(runs[0].mixture, config=config)
    (command,) = first_screen(runs, mixture, against={}, path_map={}).commands
    assert command.title == "Train with Megatron"
    flags = "--seq-length 2048 --tokenizer-type NullTokenizer --vocab-size 9 --eod-mask-loss"
    assert command.text.startswith("--data-path 0.")
    assert command.text.endswith(f" {flags}")


def test_a_column_of_advantages_is_there_where_any_is_known(run):
    first, *others = run.mixture.sources
    unknown = dataclasses.replace(first, advantage=None, advantage_standard_error=None)
    found = dataclasses.replace(run.mixture, sources=(unknown, *others))
    screen = first_screen([run], found, against={}, path_map={})
    assert not screen.rows[0].advantage
    assert screen.has_advantages


def test_a_search_that_went_on_is_read_with_the_values_of_its_result(run):
    training = {"train_iters": 800}
    longer = dataclasses.replace(run.mixture, config=dict(run.config) | {"training": training})
    write_mixture(run.path.parent / "mixture.json", longer)
    assert run.train_iters == 400
    assert read_run(run.path).train_iters == 800


def test_over_seeds_the_error_is_theirs(tmp_path):
    runs = [
        read_run(write_search(tmp_path / f"seed-{s}", NAMES, seed=s) / "metrics.jsonl")
        for s in (1, 2, 3)
    ]
    learned = runs[0].mixture.weights
    each = [predict([r], learned, runs[0].mixture.uniform).value for r in runs]
    together = predict(runs, learned, runs[0].mixture.uniform)
    assert together.value == pytest.approx(np.mean(each))
    assert together.error == pytest.approx(np.std(each, ddof=1) / np.sqrt(3))
    notes = compare_gains(runs, runs[0].mixture, {})[1]
    assert any("over 3 seeds" in note for note in notes)


def test_of_hundreds_of_sources_the_errors_are_not_rounded_to_0(tmp_path):
    names = [f"s{k}" for k in range(300)]
    folders = [write_search(tmp_path / f"seed-{s}", names, seed=s, lr=0.01) for s in (1, 2, 3)]
    found = average([read_mixture(folder) for folder in folders])
    lines = final_table(found, blend_txt=None, blend_json=None).splitlines()
    cells = [line.split() for line in lines[2:302]]
    errors = [found.standard_error(source) for source in found.sources]
    assert sorted(float(cell[3]) for cell in cells) == pytest.approx(sorted(errors), abs=5.1e-6)
    assert np.mean([float(cell[3]) > 0 for cell in cells]) > 0.9
    runs = [read_run(folder / "metrics.jsonl") for folder in folders]
    (told,) = (f.text for f in judge(runs).findings if "uniform" in f.text)
    distance, spread = found.from_uniform()
    assert f"{distance:.4f} from uniform" in told and f"{spread:.4f} of spread" in told


def test_few_seeds_need_a_larger_gain_to_be_told_from_0(tmp_path):
    bounds = {1: 12.706, 2: 4.303, 5: 2.571, 99: 1.984, None: 2.0}
    for freedom, bound in bounds.items():
        assert Gain(value=-1.01 * bound, error=1.0, freedom=freedom).clear
        assert not Gain(value=0.99 * bound, error=1.0, freedom=freedom).clear
    folders = [write_search(tmp_path / str(seed), NAMES, seed=seed) for seed in (1, 2)]
    runs = [read_run(folder / "metrics.jsonl") for folder in folders]
    learned, other = runs[0].mixture.weights, runs[0].mixture.uniform
    assert predict(runs, learned, other).freedom == 1
    assert predict(runs[:1], learned, other).freedom is None


def test_a_gain_of_more_than_the_target_loss_is_called_so(run):
    whole = dataclasses.replace(run, config=run.config | {"objective": {"train_loss_weight": 0.2}})
    for record, told in ((run, False), (whole, True)):
        notes = compare_gains([record], run.mixture, {})[1]
        assert any("0.2 times the training loss" in note for note in notes) == told


def test_bands_are_drawn_where_they_can_be_told_apart(tmp_path):
    for count, drawn in ((8, True), (9, False)):
        names = [f"s{k}" for k in range(count)]
        record = read_run(write_search(tmp_path / str(count), names) / "metrics.jsonl")
        charts = [c for found in build_charts([record], names).values() for c in found]
        (alignment,) = [chart for chart in charts if chart.key == "alignment"]
        assert any(series.band for series in alignment.series) == drawn
        (weights,) = [chart for chart in charts if chart.key == "weights"]
        assert not any(series.band for series in weights.series)
        assert weights.tail == (record.outer[20]["step"], 400)


def test_a_measured_gain_is_paired_by_seed_and_of_this_mixture_alone(run):
    mixture, folder = run.mixture, run.path.parent
    (folder / "comparison").mkdir()
    rows = folder / "comparison" / "rows.jsonl"

    def row(weights, seed, loss):
        kept = written_weights(weights)
        return {"record": "training", "setting": "s", "seed": seed, "loss": loss, "weights": kept}

    lines = [
        *(row(mixture.weights, seed, 2.0 + seed) for seed in (1, 2, 3)),
        *(row(mixture.uniform, seed, 2.1 + seed + 0.01 * seed) for seed in (1, 2)),
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    gain = Measurements(folder).gain(mixture, mixture.uniform)
    assert gain.value == pytest.approx(0.115)
    assert (gain.error, gain.freedom) == (pytest.approx(0.005), 1)
    # Another comparison, of one seed, says less.
    other = [row(mixture.weights, 1, 3.0), row(mixture.uniform, 1, 9.0)]
    text = "".join(json.dumps(line | {"setting": "another"}) + "\n" for line in other)
    (folder / "again").mkdir()
    for place in ("again", "comparison"):
        with open(folder / place / "rows.jsonl", "a") as file:
            file.write("\n" + text)
    assert Measurements(folder).gain(mixture, mixture.uniform) == gain
    assert "+0.1150 ± 0.0050" in {row.measured for row in compare_gains([run], mixture, {})[0]}
    assert Measurements(folder).gain(mixture, {"web": 1.0, "code": 0.0, "maths": 0.0}) is None
    later = mixture.corrected({"web": 0.2, "code": 0.3, "maths": 0.5})
    assert Measurements(folder).gain(later, mixture.uniform) is None


def test_what_would_be_read_too_often_is_shown_capped_too(run):
    mixture = run.mixture.for_budget(4_000_000)
    screen = first_screen([run], mixture, against={}, path_map={})
    assert mixture.epochs["web"] > 4
    web = screen.rows[0]
    assert web.many and float(web.weight) > float(web.capped)
    assert any("Read more than 4 times: web" in note for note in screen.notes)
    assert any("--max-epochs 4" in command.text for command in screen.commands)
    much = dataclasses.replace(run.mixture, token_budget=10**9)  # no mixture holds 4 epochs of it
    screen = first_screen([run], much, against={}, path_map={})
    assert not screen.rows[0].capped
    assert any("has enough tokens at 4" in note for note in screen.notes)
    few = first_screen([run], run.mixture.for_budget(10_000), against={}, path_map={})
    assert not any("Read more than" in note for note in few.notes)


def test_the_users_blend_is_compared_with(run, tmp_path, capsys):
    folder, blend = run.path.parent, tmp_path / "mine.txt"
    blend.write_text("3 /data/code 1 /data/web")
    weights = read_blend_weights(blend, run.mixture)
    assert weights == pytest.approx({"web": 0.25, "code": 0.75, "maths": 0.0})
    assert main(["report", str(folder), "--against", str(blend), "--no-png"]) == 0
    assert str(blend) in (folder / "report" / "report.html").read_text()
    blend.write_text("1 /data/other")
    assert main(["report", str(folder), "--against", str(blend), "--no-png"]) == 2
    assert "is no dataset of the search" in capsys.readouterr().err


def test_a_blend_of_answer_only_rows_counts_rows(make_mixture, with_sizes, tmp_path):
    mixture = with_sizes(
        make_mixture({"a": 0.5, "b": 0.5}),
        a={"loss_tokens": 100, "rows": 10},
        b={"loss_tokens": 300, "rows": 10},
    )
    path = tmp_path / "blend.txt"
    path.write_text("1 /data/a 1 /data/b")
    assert read_blend_weights(path, mixture) == pytest.approx({"a": 0.25, "b": 0.75})
    shares = mixture.shares("samples")
    assert mixture.weights_of("samples", shares) == pytest.approx(mixture.weights)


def test_paths_in_commands_are_absolute_and_mapped(run):
    folder = run.path.parent
    main(["report", str(folder), "--path-map", "/data=/lustre/corpora", "--no-png"])
    text = (folder / "report" / "report.html").read_text()
    assert "/lustre/corpora/web" in text and "/data/web " not in text
    assert f"export {folder.resolve()}" in text
    assert map_path("/data2/x", {"/data": "/n"}) == "/data2/x"
    assert map_path("/data/x", {"/data": "/n", "/data/x": "/m"}) == "/m"
    for wrong in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(ConfigError, match="--path-map"):
            read_path_map(wrong)


def relative(mixture, tokenizer):
    """The mixture of a search whose configuration had relative paths."""
    sources = tuple(
        dataclasses.replace(s, shards=(dataclasses.replace(s.shards[0], path=f"data/{s.name}"),))
        for s in mixture.sources
    )
    return dataclasses.replace(mixture, sources=sources, config={"tokenizer": tokenizer})


def test_some_of_the_seeds_are_not_the_result_of_their_folder(tmp_path):
    seeds = (1, 2, 3)
    folders = [write_search(tmp_path / f"seed-{seed}", NAMES, seed=seed) for seed in seeds]
    write_search(tmp_path / "seed-4", NAMES, seed=4)  # searched since, and not averaged yet
    write_mixture(tmp_path / "mixture.json", average([read_mixture(each) for each in folders]))
    runs = [read_run(folder / "metrics.jsonl") for folder in folders]
    assert run_folder(runs) == tmp_path
    assert run_folder(runs[:2]) is None


@pytest.mark.parametrize(("run_dir", "named"), [("run", True), ("/old/run", True), (None, False)])
def test_going_on_is_in_this_folder_from_wherever_it_is_typed(run, run_dir, named):
    """A relative run_dir, or that of a folder that was moved, would begin another search."""
    folder = run.path.parent
    config = run.mixture.config | {"run_dir": run_dir or str(folder)}
    stopped = dataclasses.replace(run.mixture, complete=False, config=config)
    going_on = next_commands(folder, stopped, {})[0].text
    assert going_on.startswith(f"megatron-fastmix search --config {folder}/config.yaml")
    assert going_on.endswith(f" --run-dir {folder}") == named


def test_relative_paths_are_made_absolute_where_they_are(run, tmp_path, monkeypatch):
    tokenizer = {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "t/v.json", "merge_file": "/m"}
    mixture = relative(run.mixture, tokenizer)
    monkeypatch.chdir(tmp_path)
    files = (*(f"data/{name}.idx" for name in NAMES), "t/v.json")
    for missing in (files[-1], files[0]):  # the tokenizer's file, then a dataset
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        (command, *_) = first_screen([run], mixture, against={}, path_map={}).commands
        assert command.title == "Train with Megatron"
        assert f" {tmp_path}/data/web " in command.text
        assert f"--vocab-file {tmp_path}/t/v.json --merge-file /m" in command.text
        (tmp_path / missing).unlink()
        (command, *_) = first_screen([run], mixture, against={}, path_map={}).commands
        assert f"such as {missing.removesuffix('.idx')} are relative" in command.title
        assert command.text == f"megatron-fastmix report {run.path.parent.resolve()}"


def test_paths_of_the_tokenizer_are_mapped(run, tmp_path):
    tokenizer = {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "/data/t.model"}
    mixture = dataclasses.replace(run.mixture, config={"tokenizer": tokenizer})
    commands = first_screen([run], mixture, against={}, path_map={"/data": "/lustre"}).commands
    assert "--tokenizer-model /lustre/t.model" in commands[0].text


def test_fine_tuning_is_sent_to_a_tool_that_reads_a_loss_mask(
    tmp_path, make_mixture, with_sizes, run
):
    rows = {name: {"loss_tokens": 100, "rows": 10} for name in NAMES}
    mixture = with_sizes(make_mixture(dict.fromkeys(NAMES, 1 / 3)), **rows)
    screen = first_screen([run], mixture, against={}, path_map={})
    assert "loss mask" in screen.commands[0].title
    assert not any("--data-path" in command.text for command in screen.commands)


def test_a_source_with_a_clear_advantage_is_marked(tmp_path):
    """1e-3, 0 and -1e-3 with an error of 2e-4; 3 errors are 6e-4. No weight is at its bound."""
    run = read_run(write_search(tmp_path / "run", NAMES, lr=0.03) / "metrics.jsonl")
    rows = {row.name: row for row in first_screen([run], run.mixture, against={}, path_map={}).rows}
    assert [rows[name].pull for name in NAMES] == ["gain", "", "lose"]
    assert rows["web"].advantage == "+1.0e-03 ± 2e-04"
    main(["report", str(run.path.parent), "--no-png"])
    page = (run.path.parent / "report" / "report.html").read_text()
    assert "+1.0e-03 ± 2e-04 ↑" in page and "-1.0e-03 ± 2e-04 ↓" in page


def test_a_weight_that_a_bound_holds_is_not_marked(run):
    rows = {row.name: row for row in first_screen([run], run.mixture, against={}, path_map={}).rows}
    assert run.mixture.weights[NAMES[2]] < 0.01
    assert [rows[name].pull for name in NAMES] == ["gain", "", ""]


@pytest.mark.parametrize("label", [None, "all of the web"])
def test_a_weight_that_the_bound_of_its_own_group_holds_is_not_marked(run, label):
    most = run.mixture.weights["web"]
    sources = [{"name": name, "group": label if name == "web" else None} for name in NAMES]
    group = {"name": label or "web", "min_weight": 0.0, "max_weight": most}
    held = dataclasses.replace(run, config=run.config | {"sources": sources, "groups": [group]})
    rows = first_screen([held], run.mixture, against={}, path_map={}).rows
    assert {row.name: row.pull for row in rows}["web"] == ""


def test_the_verdict_and_the_setting_are_told_once(run):
    folder = run.path.parent
    main(["report", str(folder), "--no-png"])
    text = re.sub(r"<[^>]+>", " ", (folder / "report" / "report.html").read_text())
    assert text.count("Usable, with reservations.") == 1
    for fact in (
        "exams",
        "12 × 768 (layers × width)",
        "10 optimizer steps per outer step",
        "torch 2.8.0",
    ):
        assert fact in text


def test_one_run_has_no_plus_minus_and_seeds_have_their_standard_error(tmp_path):
    paths = [write_search(tmp_path / f"seed-{seed}", NAMES, seed=seed) for seed in (1, 2, 3)]
    main(["report", str(paths[0]), "--no-png"])
    table = (paths[0] / "report" / "report.html").read_text().split("<tbody>")[0]
    assert "moved</th>" in table and "±" not in table
    main(["report", str(tmp_path), "--no-png"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "±</th>" in page.split("<tbody>")[0]
    each = [read_mixture(path).weights["web"] for path in paths]
    error = np.std(each, ddof=1) / np.sqrt(3)
    assert f"<td>{error:.{decimals([error])}f}</td>" in page or f"<td>{error:.4f}</td>" in page


def test_a_blend_without_a_source_is_refused_by_name(make_mixture, tmp_path):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 1.0}))
    (tmp_path / "b.json").write_text('{"datasets": [{"name": "z", "path": "p", "weight": 1}]}')
    with pytest.raises(DataError, match="z is no source of the search"):
        read_blend_weights(tmp_path / "b.json", read_mixture(tmp_path))


def test_many_names_are_grouped_by_their_first_word():
    names = [f"{word}_{i}" for word in ("web", "code") for i in range(15)]
    assert {group: len(found) for group, found in name_groups(names).items()} == {
        "web": 15,
        "code": 15,
    }
    assert name_groups(names[:10]) == {}
    assert name_groups([f"{chr(97 + i)}x{chr(97 + j)}" for i in range(26) for j in range(2)]) == {}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.01234, 0.0021, "+0.0123 ± 0.0021"),
        (-3.0, 0.5, "-3.00 ± 0.50"),
        (0.1234, None, "+0.123"),
        (2e-9, 1e-9, "+2.00e-09 ± 1.0e-09"),
    ],
)
def test_numbers_have_the_digits_of_their_error(value, error, text):
    assert with_error(value, error) == text
    assert decimals([0.03, 0.03]) == 2 and decimals([0.004]) == 3 and decimals([0.0]) == 3
    assert decimals([3e-5] * 100) == 4 and decimals([3e-5] * 300) == 5
    assert share(0.001, 2) == "<0.01" and share(0.0, 2) == "0.00"


def test_the_cost_says_what_its_flops_are_of(run):
    assert cost_facts([run])["FLOPs, outer steps included"] == "2.5e+17"


def test_amounts_are_rounded_before_their_unit_is_chosen():
    counts = (999, 999.6, 1_000, 999_499, 999_999, 12_345_678, 999.9e9)
    texts = ("999", "1 k", "1 k", "999 k", "1 M", "12.3 M", "1 T")
    assert tuple(map(amount, counts)) == texts


def test_the_last_lines_decide_and_name_the_page(run):
    folder, page = run.path.parent, run.path.parent / "report" / "report.html"
    text = closing_lines(folder, run.mixture.for_budget(4_000_000), page)
    assert text.splitlines()[-1] == f"The page: {page.resolve()}"
    assert "Capped at 4 epochs the mixture is web" in text
    assert re.search(r"^uniform +\+0\.\d+ ± 0\.\d+ +–$", text, re.M)
    assert text.count("Usable, with reservations.") == 1
    assert "Cost: time" in text and "seed 1" in text
    assert f"compare-mixtures --mixture {folder.resolve()}" in text


def test_the_last_lines_of_fine_tuning_name_a_tool_that_reads_a_loss_mask(
    tmp_path, make_mixture, with_sizes
):
    mixture = with_sizes(
        make_mixture({"a": 0.5, "b": 0.5}), a={"loss_tokens": 9}, b={"loss_tokens": 9}
    )
    assert "reads a loss mask" in closing_lines(tmp_path, mixture, None)
    assert "Train with Megatron" not in final_table(mixture, blend_txt="b.txt", blend_json=None)
