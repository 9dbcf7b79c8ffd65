"""`search --from RUN`: what becomes of the sources, and what is refused. The run is a mixture.json
without checkpoints here; tests/distributed/test_group_search.py has one with them."""

import dataclasses
from pathlib import Path

import pytest

from megatron_fastmix.cli import main as cli
from megatron_fastmix.config import load_config, strict_yaml
from megatron_fastmix.config.search import SearchConfig
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard
from megatron_fastmix.search.start_mixture import start_mixture
from megatron_fastmix.start.from_run import start_from


def load(values: dict) -> SearchConfig:
    return strict_yaml.from_dict(SearchConfig, values)


@pytest.fixture
def earlier(search_values: dict, corpora: Path, tmp_path: Path, make_mixture):
    """A function: weights by name to the folder of a finished run of these sources."""

    def make(weights: dict[str, float], **changes) -> Path:
        mixture = make_mixture(weights)
        sources = []
        for source in mixture.sources:
            path = corpora / source.name
            found = inspect_indexed_dataset(path) if Path(f"{path}.idx").exists() else None
            tokens = found.tokens if found else 100
            shard = Shard(path=str(path), tokens=tokens, loss_tokens=tokens, rows=3)
            documents = found.documents if found else 3
            sources.append(dataclasses.replace(source, shards=(shard,), documents=documents))
        changes = {"config": {"tokenizer": search_values["tokenizer"]}} | changes
        folder = tmp_path / "earlier"
        folder.mkdir(exist_ok=True)
        write_mixture(
            folder / "mixture.json",
            dataclasses.replace(mixture, sources=tuple(sources), **changes),
        )
        return folder

    return make


def test_known_sources_are_one_logit_and_the_new_starts_even(search_values, earlier):
    run = earlier({"noise": 0.15, "forward": 0.45, "gone": 0.4})
    found = start_from(load(search_values), run)
    assert found.known == ("forward", "noise")
    assert (found.new, found.rebuilt, found.dropped) == (("backward",), (), ("gone",))
    assert found.text == (
        "one logit for forward, noise, whose relative weights stay; one each for backward; "
        "dropped: gone"
    )
    mixture = start_mixture(found.config, [1, 1, 1])
    assert mixture.weights.tolist() == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert mixture.grouping.names == ("known", "backward")
    # The configuration alone says it all, so that a resume needs no --from.
    again = strict_yaml.from_dict(SearchConfig, strict_yaml.to_dict(found.config))
    assert again == found.config
    assert start_from(load(search_values), run).config == found.config


def test_a_rebuilt_source_is_learned_from_its_old_weight(search_values, corpora, earlier):
    run = earlier({"forward": 0.3, "backward": 0.6, "noise": 0.1})
    search_values["sources"][1]["path"] = str(corpora / "noise_too")
    found = start_from(load(search_values), run)
    assert (found.known, found.rebuilt, found.new) == (("forward", "noise"), ("backward",), ())
    assert found.config.mixture.initial_weights == pytest.approx((0.3, 0.6, 0.1))
    assert start_mixture(found.config, [1, 1, 1]).grouping.members.tolist() == [0, 1, 0]


def test_other_tokenizers_are_refused(search_values, earlier):
    theirs = {"tokenizer_type": "NullTokenizer", "vocab_size": 256}
    run = earlier({"forward": 0.5, "noise": 0.5}, config={"tokenizer": theirs})
    with pytest.raises(ConfigError, match=r"tokenizer: found ByteLevelTokenizer .*use that token"):
        start_from(load(search_values), run)


def test_runs_that_give_no_start_are_refused(search_values, earlier):
    config = load(search_values)
    with pytest.raises(ConfigError, match="is not finished"):
        start_from(config, earlier({"forward": 0.5, "noise": 0.5}, complete=False))
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        start_from(config, earlier({"forward": 0.2, "noise": 0.5, "backward": 0.3}))
    with pytest.raises(ConfigError, match=r"no source of .* is unchanged"):
        start_from(config, earlier({"x": 0.5, "y": 0.5}))
    with pytest.raises(ConfigError, match="own run_dir"):
        start_from(config, config.run_dir)


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("mixture", {"initial_weights": [1, 2, 3]}, "mixture.initial_weights: found beside --from"),
        ("sources", {"group": "g"}, r"sources\[\].group: found beside --from"),
    ],
)
def test_settings_that_it_makes_itself_are_refused(search_values, earlier, section, changes, told):
    part = search_values[section]
    (part[0] if isinstance(part, list) else part).update(changes)
    with pytest.raises(ConfigError, match=told):
        start_from(load(search_values), earlier({"forward": 0.5, "noise": 0.5}))


def test_bounds_of_known_sources_hold_as_their_groups(search_values, earlier):
    search_values["sources"][0]["max_weight"] = 0.3
    found = start_from(load(search_values), earlier({"forward": 0.75, "noise": 0.25}))
    assert start_mixture(found.config, [1, 1, 1]).weights.tolist() == pytest.approx([0.3, 0.6, 0.1])


def test_the_launch_scripts_start_from_a_run_too(
    search_values, earlier, config_file, tmp_path, capsys
):
    """By `check-hosts`, whose configuration is all that the ranks are given."""
    run = earlier({"noise": 0.15, "forward": 0.45, "gone": 0.4})
    run_dir = tmp_path / "next"
    arguments = ["--config", str(config_file), f"--from={run}", f"--run_dir={run_dir}"]
    assert cli.main(["check-hosts", *arguments]) == 0
    out, err = capsys.readouterr()
    assert f"From {run}: one logit for forward, noise" in err
    config = load_config(out.strip())
    assert config.run_dir == str(run_dir)
    assert config == start_from(load(search_values | {"run_dir": str(run_dir)}), run).config
