"""The comparison of methods: its scenarios, and the command on real trainings."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import yaml

from megatron_fastmix.cli import main as cli
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import METHODS
from megatron_fastmix.lab.comparison.config import key_of
from megatron_fastmix.lab.comparison.method_lines import aggregated
from megatron_fastmix.lab.comparison.methods import MethodComparison
from megatron_fastmix.lab.comparison.rows import RowFile, SearchRow
from megatron_fastmix.lab.comparison.same_search import configuration_of
from megatron_fastmix.lab.comparison.scenario import load_scenario


def test_the_worst_test_counts_over_its_reference(scenario):
    values = yaml.safe_load(scenario.read_text())
    test = values["compare"]["tests"][0]
    values["compare"]["tests"] = [
        test | {"name": "a", "reference_loss": 3.0},
        test | {"name": "b"},
    ]
    row = SimpleNamespace(loss=2.5, losses={"a": 4.0, "b": 1.5})
    for aggregation, expected in (("mean", 2.5), ("worst_case", 1.5)):
        values["search"]["objective"] = {"target_aggregation": aggregation}
        scenario.write_text(yaml.safe_dump(values))
        assert aggregated(load_scenario(scenario), row) == expected
    values["search"]["objective"] = {"target_aggregation": "least_gain"}
    scenario.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"compare\.tests: b: reference_loss is 0"):
        load_scenario(scenario)
    values["compare"]["tests"][1]["reference_loss"] = 0.25
    scenario.write_text(yaml.safe_dump(values))
    assert aggregated(load_scenario(scenario), row) == 1.25


def test_a_variant_is_fastmix_with_other_settings(scenario, tmp_path):
    found = load_scenario(scenario)
    assert found.choose(None, "mine") == [*METHODS, "inner_steps=1"]
    method, config = found.job("inner_steps=1", 7, tmp_path)
    assert (method, config.mixture.inner_steps, config.seed) == ("fastmix", 1, 7)
    assert found.job("doge", 7, tmp_path)[0] == "doge"
    with pytest.raises(ConfigError, match="mine: methods: found 'magic'; choose among fastmix"):
        found.choose("fastmix,magic", "mine")


def test_methods_have_settings_and_seeds_of_their_own(scenario, tmp_path):
    values = yaml.safe_load(scenario.read_text())
    values["overrides"] = {"fastmix": ["--train-iters=16"], "doge": ["--training.lr=0.125"]}
    values["seeds"] = {"uniform": 2}
    values["baselines"] = {"regmix": {"runs": 3}}
    scenario.write_text(yaml.safe_dump(values))
    found = load_scenario(scenario)
    usual = found.searches["odm"].training
    assert found.searches["fastmix"].training == dataclasses.replace(usual, train_iters=16)
    assert found.searches["inner_steps=1"].training.train_iters == 16
    assert found.searches["doge"].training == dataclasses.replace(usual, lr=0.125)
    assert found.baselines.regmix.runs == 3
    comparison = MethodComparison(
        "s", found, ["uniform", "odm"], seeds=1, rows=tmp_path, work=tmp_path, workers=1
    )
    assert comparison.wanted == [("uniform", 1), ("uniform", 2), ("odm", 1)]
    for section, wrong in (("overrides", {"magic": []}), ("seeds", {"magic": 1})):
        scenario.write_text(yaml.safe_dump(values | {section: wrong}))
        with pytest.raises(ConfigError, match=f"{section}: found 'magic'"):
            load_scenario(scenario)


@pytest.mark.parametrize(
    ("method", "changed", "said"),
    [
        ("uniform", {"search": {"training": {"train_iters": 9, "lr_warmup_iters": 1}}}, None),
        ("random_search", {"search": {"mixture": {"inner_steps": 1}}}, None),
        ("random_search", {"search": {"training": {"train_iters": 9}}}, "searched with training"),
        ("random_search", {"baselines": {"regmix": {"runs": 3}}}, "searched with regmix"),
        ("uniform", {"search": {"mixture": {"learn": "groups"}}}, r"searched with mixture\.learn"),
        ("random_search", {"baselines": {"climb": {"top": 90}}}, None),
    ],
)
def test_a_row_is_kept_while_what_it_depends_on_is_unchanged(
    scenario, tmp_path, method, changed, said
):
    values = yaml.safe_load(scenario.read_text()) | {"variants": []}
    values["search"]["sources"][0]["group"] = "one"
    scenario.write_text(yaml.safe_dump(values))
    before = load_scenario(scenario)
    configuration = configuration_of(before.searches[method])
    row = SearchRow(
        configuration=key_of(configuration),
        method=method,
        seed=1,
        weights={"a": 1.0},
        weight_std={"a": 0.0},
        flops=1.0,
        wall_seconds=1.0,
        tokens=1,
        versions={},
    )
    RowFile(tmp_path / "s.jsonl").add_search(row, configuration)
    for section, parts in changed.items():
        for key, part in parts.items():
            there = values.setdefault(section, {}).setdefault(key, {})
            values[section][key] = there | part
    scenario.write_text(yaml.safe_dump(values))
    after = load_scenario(scenario)

    def open_rows():
        MethodComparison("s", after, [method], seeds=1, rows=tmp_path, work=tmp_path, workers=1)

    if said is None:
        open_rows()
    else:
        with pytest.raises(ConfigError, match=said):
            open_rows()


def test_a_scenario_takes_up_what_its_base_has(scenario, tmp_path):
    values = yaml.safe_load(scenario.read_text())
    (tmp_path / "scenarios").mkdir()
    small = tmp_path / "scenarios" / "small.yaml"
    own = {
        "base": "../tiny.yaml",
        "variants": [],
        "search": {"training": {"lr": 0.125}, "targets": [{"name": "t", "path": "elsewhere"}]},
    }
    small.write_text(yaml.safe_dump(own))
    base, found = load_scenario(scenario), load_scenario(small)
    assert found.search.training == dataclasses.replace(base.search.training, lr=0.125)
    assert found.search.sources == base.search.sources
    assert [target.path for target in found.search.targets] == ["elsewhere"]
    assert (found.compare, found.variants) == (base.compare, ())

    scenario.write_text(yaml.safe_dump(values | {"base": "scenarios/small.yaml"}))
    with pytest.raises(ConfigError, match="each other's base"):
        load_scenario(small)
    small.write_text("base: 3")
    with pytest.raises(ConfigError, match="base: found 3; expected the path"):
        load_scenario(small)


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ([{"name": "doge", "overrides": []}], "no method's name"),
        ([{"name": "a/b", "overrides": []}], "letters, digits"),
        ([{"name": "a", "overrides": []}] * 2, "found a twice"),
        ([{"name": "a", "overrides": ["--mixture.magic=1"]}], "unknown key"),
    ],
)
def test_wrong_variants_are_refused(scenario, capsys, variants, said):
    values = yaml.safe_load(scenario.read_text()) | {"variants": variants}
    scenario.write_text(yaml.safe_dump(values))
    assert cli.main(["compare-methods", "--scenario", str(scenario)]) == ConfigError.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_makes_each_row_once(scenario, tmp_path, capsys):
    rows = tmp_path / "rows"
    arguments = ["compare-methods", "--scenario", str(scenario), "--seeds", "1"]
    arguments += ["--methods", "uniform,doge,fastmix,inner_steps=1", "--output", str(rows)]
    arguments += ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "measurements.json")]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(method in out for method in ("uniform", "doge", "fastmix"))
    file = rows / "tiny.jsonl"
    found = RowFile(file).read()
    assert sorted(found.searches) == [
        ("doge", 1),
        ("fastmix", 1),
        ("inner_steps=1", 1),
        ("uniform", 1),
    ]
    assert len(found.configurations) == 2  # the variant's, and that of all others
    assert len(found.trainings) == 4
    assert not any(row.sample_losses for row in found.trainings.values())
    measurements = {
        row["figure"]: row
        for row in json.loads((tmp_path / "measurements.json").read_text())["rows"]
    }
    flops = {method: row.flops for (method, _), row in found.searches.items()}
    ratio = flops["doge"] / flops["fastmix"]
    assert measurements["tiny: search FLOPs, doge / fastmix"]["value"] == pytest.approx(ratio)
    assert flops["inner_steps=1"] > flops["fastmix"]

    before = file.read_bytes()
    assert cli.main(arguments) == 0
    assert file.read_bytes() == before
    assert "0 of 4 searches to do" in capsys.readouterr().out

    # A search that was killed before its row was written is not done again.
    lines = before.decode().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"method": "fastmix"' not in line))
    assert cli.main(arguments) == 0
    assert "0 of 4 searches to do" in capsys.readouterr().out
    assert RowFile(file).read() == found

    # A row that is older than a key of the configuration had the key's default.
    text = file.read_text()
    assert '"probe_allocation": "even", ' in text
    file.write_text(text.replace('"probe_allocation": "even", ', ""))
    assert cli.main([*arguments, "--table-only"]) == 0
    capsys.readouterr()

    arguments_elsewhere = [str(rows / "none") if a == str(rows) else a for a in arguments]
    assert cli.main([*arguments_elsewhere, "--table-only"]) == 0
    assert f"no rows of these methods in {rows}/none/" in capsys.readouterr().out

    # Another objective on the same target model: uniform's row is there already.
    values = yaml.safe_load(scenario.read_text())
    values["search"]["objective"] = {"target_aggregation": "worst_case"}
    worst = tmp_path / "worst.yaml"
    worst.write_text(yaml.safe_dump(values))
    again = [str(worst) if a == str(scenario) else a for a in arguments]
    again[again.index("--methods") + 1] = "uniform"
    assert cli.main(again) == 0
    assert "1 of 1 rows are finished" in capsys.readouterr().out
    (copy,) = RowFile(rows / "worst.jsonl").read().trainings.values()
    assert copy == found.trainings[copy.key]

    values = yaml.safe_load(scenario.read_text())
    tests = [values["compare"]["tests"][0] | {"name": "other"}]
    scenario.write_text(yaml.safe_dump(values | {"compare": values["compare"] | {"tests": tests}}))
    assert cli.main([*arguments, "--table-only"]) == ConfigError.exit_code
    assert "tests.other.weight: None there, 1.0 now" in capsys.readouterr().err
    for section, said in (("search", "searched with training"), ("compare", "training.lr: 0.00")):
        changed = values | {
            section: values[section]
            | {"training": {"lr": 0.5, "train_iters": 4, "lr_warmup_iters": 2}}
        }
        scenario.write_text(yaml.safe_dump(changed))
        assert cli.main([*arguments, "--table-only"]) == ConfigError.exit_code
        assert said in capsys.readouterr().err


def test_rows_of_other_data_are_refused_before_a_search(scenario, tmp_path, capsys):
    rows, work = tmp_path / "rows", tmp_path / "work"
    arguments = ["compare-methods", "--scenario", str(scenario), "--methods", "fastmix"]
    arguments += ["--output", str(rows), "--work", str(work)]
    comparison = MethodComparison(
        "tiny", load_scenario(scenario), ["fastmix"], seeds=1, rows=rows, work=work, workers=1
    )
    comparison.claim()
    file = rows / "tiny.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (setting,) = (each["values"] for each in lines if each["record"] == "setting")
    tokens = next(key for key in setting if key.startswith("sources.") and key.endswith(".tokens"))
    setting[tokens] += 1
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(arguments) == ConfigError.exit_code
    told = capsys.readouterr()
    assert f"{tokens}: {setting[tokens]} there" in told.err
    assert "searches to do" not in told.out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--methods", "magic"], "magic"),
        (["--seeds", "0"], "--seeds"),
        (["--save-interval", "0"], "--save-interval"),
        (["--against", "magic"], "--against: found 'magic'; choose among what tiny compares"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_wrong_flags_are_refused(scenario, capsys, flags, named):
    assert cli.main(["compare-methods", "--scenario", str(scenario), *flags]) == 2
    assert named in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(scenario, tmp_path, capsys):
    other = tmp_path / "elsewhere" / scenario.name
    other.parent.mkdir()
    other.write_text(scenario.read_text())
    assert cli.main(["compare-methods", "--scenario", str(scenario), str(other)]) == 2
    assert "--scenario: found two files tiny" in capsys.readouterr().err


def test_a_wrong_key_is_named_with_its_file(scenario):
    values = yaml.safe_load(scenario.read_text())
    values["search"]["proxy"] |= {"num_layer": 2}
    scenario.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"tiny\.yaml, with its base: search\.proxy\.num_layer"):
        load_scenario(scenario)
