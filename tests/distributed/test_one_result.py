"""Every artefact of a run says the same mixture, in the unit that its reader counts in.

Four real searches, of text and of answer-only rows with two seeds each, and their averages. What is
expected is worked out here from the metrics and the datasets alone.
"""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_fastmix.blend.live_mixture import LiveMixture
from megatron_fastmix.cli.main import main
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.indexed.answer_rows import read_answer_rows
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.search.loop import Search
from megatron_fastmix.start.artifacts import write_run_artifacts
from megatron_fastmix.start.launch import launch
from megatron_fastmix.start.seeds import launch_seeds
from tests.conftest import SEQ_LENGTH, SOURCES, small_search
from tests.distributed.searches import claim_once, load

pytestmark = pytest.mark.slow

SEEDS = (1, 2)
CASES = ("text", "text seeds", "answers", "answers seeds")


def search(config: SearchConfig) -> None:
    """Runs a search and keeps its mixture.json as it was after the first checkpoint."""
    claim_once(config)
    found = Search(config)
    original = found.batches.training

    def training(step: int, micro_step: int) -> Any:
        if (step, micro_step, found.world.rank) == (4, 0, 0):
            shutil.copy(found.folder.mixture, found.folder.path / "at-checkpoint.json")
        return original(step, micro_step)

    found.batches.training = training  # type: ignore[method-assign]
    found.run()
    if found.world.rank == 0:
        write_run_artifacts(config.run_dir, found.result())


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, or the average of two, and what its artefacts must say; arrays are (K,)."""

    folder: Path
    config: SearchConfig
    answers: bool
    seeds: bool
    weights: np.ndarray
    tokens: np.ndarray
    loss_tokens: np.ndarray
    rows: np.ndarray

    @property
    def budget(self) -> int:
        return int(self.loss_tokens.sum())

    @property
    def epochs(self) -> np.ndarray:
        return self.weights * self.budget / self.loss_tokens

    def shares(self, sizes: np.ndarray) -> np.ndarray:
        """Of what `sizes` count: every source is read `epochs` times."""
        drawn = self.epochs * sizes
        return drawn / drawn.sum()

    @property
    def samples(self) -> np.ndarray:
        """Shares of what Megatron draws."""
        return self.shares(self.rows if self.answers else self.tokens)

    @property
    def table(self) -> str:
        """What the search prints at its end."""
        return (self.folder / "table.txt").read_text()


def tail_mean(folder: Path) -> np.ndarray:
    """The mean of the second half of the outer steps' weights."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "outer"]
    weights = np.array([[line["weights"][name] for name in SOURCES] for line in lines])
    return weights[-max(1, round(len(weights) / 2)) :].mean(axis=0)


@pytest.fixture(scope="module")
def cases(
    corpora: Path, answer_corpora: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Case]:
    found = {}
    for kind, data in (("text", corpora), ("answers", answer_corpora)):
        folder = tmp_path_factory.mktemp("one_result") / kind
        values = small_search(data, folder)
        values["mixture"] |= {"lr": 0.3}
        values["training"] |= {"train_iters": 8}
        values["seed"] = SEEDS[0]
        whole = load(values, run_dir=folder)
        singles = [load(values, run_dir=folder / f"seed-{seed}", seed=seed) for seed in SEEDS]
        for config in singles:
            run_ranks(2, search, config)
        answers = kind == "answers"
        sizes = {"tokens": [], "loss_tokens": [], "rows": []}
        for name in SOURCES:
            summary = inspect_indexed_dataset(data / name)
            sizes["tokens"].append(summary.tokens)
            if answers:
                rows = read_answer_rows(data / name, SEQ_LENGTH)
                sizes["loss_tokens"].append(rows.answer_tokens.sum())
                sizes["rows"].append(np.count_nonzero(rows.answer_tokens))
            else:
                sizes["loss_tokens"].append(summary.tokens)
                sizes["rows"].append(summary.documents)
        weights = [tail_mean(Path(config.run_dir)) for config in singles]
        for seeds in (False, True):
            found[f"{kind} seeds" if seeds else kind] = Case(
                folder=folder if seeds else folder / "seed-1",
                config=whole if seeds else singles[0],
                answers=answers,
                seeds=seeds,
                weights=np.mean(weights, axis=0) if seeds else weights[0],
                **{key: np.array(counts, dtype=float) for key, counts in sizes.items()},
            )
    return found


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """A finished run; its table is that of the command, which finds the searches complete."""
    import contextlib
    import io

    found = cases[request.param]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        launched = launch_seeds(found.config, 2) if found.seeds else launch(found.config)
    assert launched == 0
    (found.folder / "table.txt").write_text(printed.getvalue())
    return found


def test_the_file_has_weights_sizes_and_what_follows_from_them(case: Case) -> None:
    values = json.loads((case.folder / "mixture.json").read_text())
    assert values["unit"] == (
        "share of answer tokens" if case.answers else "share of samples of seq_length tokens"
    )
    assert values["token_budget"] == case.budget
    assert values["seeds"] == (list(SEEDS) if case.seeds else [])
    sources = values["sources"]
    assert [source["name"] for source in sources] == list(SOURCES)
    for key, expected in (
        ("weight", case.weights),
        ("tokens", case.tokens),
        ("loss_tokens", case.loss_tokens),
        ("rows", case.rows),
        ("epochs", case.epochs),
        ("row_weight", case.shares(case.rows)),
    ):
        np.testing.assert_allclose([s[key] for s in sources], expected, rtol=1e-9, err_msg=key)
    for source in sources:
        (shard,) = source["shards"]
        assert shard == {k: source[k] for k in ("tokens", "loss_tokens", "rows", "path")}
    (target,) = values["targets"]
    assert (target["loss_tokens"] < target["tokens"]) == case.answers


def test_the_mixture_is_there_from_the_first_checkpoint_on(cases: dict[str, Case]) -> None:
    for kind in ("text", "answers"):
        early = read_mixture(cases[kind].folder / "at-checkpoint.json")
        assert (early.steps, early.complete) == (3, False)
        assert early.sizes == read_mixture(cases[kind].folder).sizes


def named(pairs: list[Any]) -> dict[str, float]:
    """Weights by source from weights and prefixes in turn."""
    return {Path(p).name: float(w) for w, p in zip(pairs[::2], pairs[1::2], strict=True)}


def test_the_run_folders_blends_are_what_megatron_draws(case: Case) -> None:
    expected = dict(zip(SOURCES, case.samples, strict=True))
    assert named((case.folder / "blend.txt").read_text().split()) == pytest.approx(
        expected, abs=1e-4
    )
    splits = json.loads((case.folder / "blend.json").read_text())
    assert named(splits["train"]) == pytest.approx(expected, abs=1e-4)
    assert [Path(prefix).name for prefix in splits["valid"]] == ["target"]


def hf_weights(text: str) -> dict[str, float]:
    sources = ast.literal_eval(text[text.index("{") : text.index("\n}") + 2])
    return {name: source["probability"] for name, source in sources.items()}


def bridge_weights(text: str) -> dict[str, float]:
    paths, weights = yaml.safe_load(text)["dataset"]["blend_per_split"][0]
    return {Path(path).name: weight for path, weight in zip(paths, weights, strict=True)}


def bridge_sources(text: str) -> dict[str, float]:
    values = yaml.safe_load(text)["dataset"]
    paths = [Path(entry["path_or_dataset"]).name for entry in values["source"]]
    return dict(zip(paths, values["source_weights"], strict=True))


def neox_weights(text: str) -> dict[str, float]:
    values = yaml.safe_load(text)
    pairs = zip(values["train-data-paths"], values["train-data-weights"], strict=True)
    return {Path(path).name: weight for path, weight in pairs}


def nanotron_weights(text: str) -> dict[str, float]:
    values = yaml.safe_load(text)["dataset"]
    pairs = zip(values["dataset_folder"], values["dataset_weights"], strict=True)
    return {Path(path).name: weight for path, weight in pairs}


def llama_weights(text: str) -> dict[str, float]:
    values = yaml.safe_load(text)
    shares = map(float, values["interleave_probs"].split(","))
    return dict(zip(values["dataset"].split(","), shares, strict=True))


def energon(text: str, kind: str, key: str) -> dict[str, float]:
    entries = yaml.safe_load(text)["splits"]["train"][kind]
    return {Path(entry["path"]).name: entry[key] for entry in entries}


def streaming(text: str, key: str) -> dict[str, float]:
    return {name: stream[key] for name, stream in yaml.safe_load(text)["streams"].items()}


EXPORTS: dict[str, tuple[str, Callable[[str], dict[str, float]]]] = {
    "megatron-cli": ("samples", lambda text: named(shlex.split(text)[1:])),
    "megatron-data-args": ("samples", lambda text: named(text.split())),
    "megatron-per-split": ("samples", lambda text: named(json.loads(text)["train"])),
    "megatron-bridge": ("samples", bridge_weights),
    "megatron-bridge-sources": ("epochs", bridge_sources),
    "megatron-bridge-manifest": ("rows", lambda text: named(json.loads(text)["train"])),
    "model-optimizer": ("samples", lambda text: named(text.split())),
    "nemotron": (
        "samples",
        lambda text: {entry["name"]: entry["weight"] for entry in json.loads(text)["train"]},
    ),
    "nemo-2": ("samples", lambda text: named(ast.literal_eval(text.removeprefix("paths=")))),
    "nemo-1": (
        "samples",
        lambda text: named(yaml.safe_load(text)["model"]["data"]["data_prefix"]),
    ),
    "gpt-neox": ("tokens", neox_weights),
    "olmo-core": (
        "tokens",
        lambda text: {s["source_name"]: s["target_ratio"] for s in yaml.safe_load(text)["sources"]},
    ),
    "nanotron": ("tokens", nanotron_weights),
    "energon": ("rows", lambda text: energon(text, "blend", "weight")),
    "energon-epochized": ("epochs", lambda text: energon(text, "blend_epochized", "repetitions")),
    "mosaicml-streaming": ("samples", lambda text: streaming(text, "proportion")),
    "mosaicml-streaming-repeat": ("epochs", lambda text: streaming(text, "repeat")),
    "hf-datasets": ("rows", hf_weights),
    "llama-factory": ("rows", llama_weights),
}
"""What each format's reader counts, and how it is read back."""


@pytest.mark.parametrize("name", FORMATS)
def test_every_export_is_in_the_unit_of_its_reader(
    case: Case, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(case.folder), "--format", name]) == 0
    text = capsys.readouterr().out
    unit, read = EXPORTS[name]
    expected = {
        "samples": case.samples,
        "tokens": case.shares(case.tokens),
        "rows": case.shares(case.rows),
        "epochs": case.epochs,
    }[unit]
    # A weight of 0.05 that is rounded to four places moves its epochs by as much as 0.1 %.
    assert read(text) == pytest.approx(
        dict(zip(SOURCES, expected, strict=True)), abs=3e-4, rel=2e-3
    )
    if name == "olmo-core":
        total = (case.epochs * case.tokens).sum()
        budget = int(text.split("\n")[0].removeprefix("# for requested_tokens up to "))
        assert budget == pytest.approx(total, rel=1e-3)
        for source, epochs in zip(yaml.safe_load(text)["sources"], case.epochs, strict=True):
            assert source["max_repetition_ratio"] == pytest.approx(max(1, epochs), abs=0.03)


def test_a_correction_that_changes_nothing_shows_no_change(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, expected in (("megatron-cli", case.samples), ("hf-datasets", case.shares(case.rows))):
        flags = ["--format", name, "--max-epochs", "1000"]
        assert main(["export", str(case.folder), *flags]) == 0
        said = capsys.readouterr().err
        cells = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.split()}
        for k, source in enumerate(SOURCES):
            learned, exported, change, size, epochs = cells[source]
            assert float(learned) == pytest.approx(expected[k], abs=1e-4)
            assert float(exported) == pytest.approx(expected[k], abs=3e-4)
            assert abs(float(change)) < 3e-4
            assert size == f"{int(case.loss_tokens[k]):,}"
            assert float(epochs) == pytest.approx(case.epochs[k], abs=0.02)
        tokens = "answer tokens" if case.answers else "tokens"
        assert f"Epochs are those in {case.budget:,} {tokens}." in said
        rows = case.answers or name == "hf-datasets"
        assert f"are shares of {'rows' if rows else 'tokens'}." in said


def test_the_table_at_the_end_says_so_too(case: Case) -> None:
    said = case.table[case.table.rindex("source ") :]
    cells = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.split()}
    for k, source in enumerate(SOURCES):
        _, weight, _, size, epochs, *rows = cells[source]
        assert float(weight) == pytest.approx(case.weights[k], abs=1e-4)
        assert size == f"{int(case.loss_tokens[k]):,}"
        assert float(epochs) == pytest.approx(case.epochs[k], abs=0.006)
        if case.answers:
            assert rows[0] == f"{int(case.rows[k]):,}"
            assert float(rows[1]) == pytest.approx(case.samples[k], abs=1e-4)
        else:
            assert rows == []
    tokens = "answer tokens" if case.answers else "tokens"
    assert f"Epochs are those in {case.budget:,} {tokens}." in said
    of_seeds = "± is the standard error over 2 seeds"
    of_one = "moved is the spread over the last 2 of 4 outer steps"
    assert (of_seeds in said, of_one in said) == (case.seeds, not case.seeds)


def test_the_page_says_so_too(case: Case) -> None:
    page = (case.folder / "report" / "report.html").read_text()
    first = page.split("<nav")[0]
    blend = (case.folder / "blend.txt").read_text().split()
    flags = re.search(r"<pre[^>]*>(--data-path .*?)</pre>", first, flags=re.S)
    # Megatron's pretraining would train on the questions, too.
    assert (flags is None) == case.answers
    if flags is not None:
        words = shlex.split(unescape(flags[1]))
        end = words.index("--seq-length")
        found, rest = words[:end], shlex.join(words[end:])
        # The command's own table ends with the same flags, but for the file of the blend.
        assert any(line.endswith(f" {rest}") for line in case.table.splitlines())
        assert [Path(word).name for word in found[2::2]] == [Path(w).name for w in blend[1::2]]
        assert found[1::2] == blend[0::2]
        assert all(Path(word).is_absolute() for word in found[2::2])
    table = first[first.index('<table class="sources">') : first.index("</table>")]
    rows = dict(re.findall(r'<th scope="row">([^<]*)</th>(.*?)</tr>', table, flags=re.S))
    for k, source in enumerate(SOURCES):
        texts = [re.sub(r"<[^>]+>", "", c) for c in re.findall(r"<td.*?</td>", rows[source], re.S)]
        # The bar has no text, and the advantage, which 4 outer steps do not give, is a dash.
        cells = [text for text in map(str.strip, texts) if text not in ("", "–")]
        if any(epochs > 4 for epochs in case.epochs):
            cells.pop(2)  # the capped weight, where there is one
        assert float(cells[0]) == pytest.approx(case.weights[k], abs=6e-3)
        if case.answers:
            assert float(cells.pop(2)) == pytest.approx(case.samples[k], abs=1e-4)
        assert counted(cells[3]) == pytest.approx(case.weights[k] * case.budget, rel=0.01)
        assert counted(cells[4]) == pytest.approx(case.loss_tokens[k], rel=0.01)
        assert float(cells[5]) == pytest.approx(case.epochs[k], rel=0.01)
    assert "training tokens" not in page
    assert ("shares of answer tokens" in first) == case.answers
    # The three words of the lead are of the same mixture.
    heaviest = SOURCES[int(case.weights.argmax())]
    assert f"<b>{heaviest} {case.weights.max():.2f}" in first


def counted(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * {"": 1.0, "k": 1e3, "M": 1e6}[unit]


def test_a_live_mixture_draws_what_the_blend_says(case: Case) -> None:
    live = LiveMixture.from_mixture_file(case.folder)
    np.testing.assert_allclose(live.weights, case.samples, rtol=1e-9)


@pytest.mark.parametrize("kind", ["text", "answers"])
def test_two_runs_without_seeds_cannot_be_told_apart(
    cases: dict[str, Case], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    single, seeds = cases[kind], cases[f"{kind} seeds"]
    launch_seeds(seeds.config, 2)
    other = single.folder.parent / "seed-2"
    capsys.readouterr()
    for pair in ((single.folder, other), (single.folder, seeds.folder)):
        assert main(["compare", *map(str, pair)]) == 7
        said = capsys.readouterr().out
        assert "Cannot tell whether the mixtures differ" in said
        assert "Spread A is the spread over the last 2 of 4 outer steps" in said
        assert "uncertainty" not in said and "standard error" not in said
        cells = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.split()}
        for k, source in enumerate(SOURCES):
            assert float(cells[source][0]) == pytest.approx(single.weights[k], abs=1e-4)
    assert main(["compare", str(seeds.folder), str(seeds.folder)]) == 0
    said = capsys.readouterr().out
    assert "spread B is the standard deviation over 2 seeds" in said
    unit = "answer tokens" if seeds.answers else "tokens"
    assert f"0.0% of the {unit} would come from another source" in said


@pytest.mark.parametrize("kind", ["text", "answers"])
def test_a_baseline_is_written_in_the_same_units(
    cases: dict[str, Case], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All sources as often in proportion to their size, so that all rows are read once."""
    case = cases[kind]
    config = str(case.folder / "config.yaml")
    out = tmp_path / "out"
    assert main(["baseline", "proportional", "--config", config, "--output", str(out)]) == 0
    mixture = read_mixture(out)
    shares = case.loss_tokens / case.budget
    np.testing.assert_allclose(list(mixture.weights.values()), shares, rtol=1e-9)
    np.testing.assert_allclose(list(mixture.epochs.values()), 1.0, rtol=1e-9)
    drawn = case.rows if case.answers else case.tokens
    blend = named((out / "blend.txt").read_text().split())
    expected = dict(zip(SOURCES, drawn / drawn.sum(), strict=True))
    assert blend == pytest.approx(expected, abs=1e-4)
    assert math.isclose(sum(mixture.shares("rows").values()), 1)
    assert " 1.00" in capsys.readouterr().out
