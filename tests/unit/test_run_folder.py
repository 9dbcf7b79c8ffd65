"""What may change between the parts of one search."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_fastmix.checkpoint.store import STATE_FILE
from megatron_fastmix.config import dump_config, load_config
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.check_hosts import check_hosts
from megatron_fastmix.start.claim import claim
from megatron_fastmix.start.launch import launch
from megatron_fastmix.start.seeds import launch_seeds


@pytest.mark.parametrize("key", ["mixture.lr", "mixture.inner_steps"])
def test_a_change_must_be_accepted(config_file: Path, key: str) -> None:
    claim(load_config(config_file))
    changed = load_config(config_file, [f"--{key}=3"])
    with pytest.raises(ConfigError, match=rf"{key}: was .*--accept-changes"):
        claim(changed)
    claim(changed, accept_changes=True)
    assert load_config(RunFolder(Path(changed.run_dir)).config) == changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--mixture.inner_steps=3", "inner_steps: was 2, now 3"),
        ("--global-batch-size=24", "global_batch_size: was 12, now 24"),
    ],
)
def test_under_sampling_what_says_at_which_draw_a_mixture_held_must_stay(
    config_file: Path, change: str, said: str
) -> None:
    sampling = "--mixture.weighting=sampling"
    claim(load_config(config_file, [sampling]))
    changed = load_config(config_file, [sampling, change])
    with pytest.raises(ConfigError, match=rf"{said}.*set these back") as caught:
        claim(changed, accept_changes=True)
    assert "--accept-changes" not in str(caught.value)


def test_one_seed_and_several_do_not_share_a_folder(
    config_file: Path, tmp_path: Path, make_mixture: Any
) -> None:
    config = load_config(config_file, [f"--run_dir={tmp_path}/one"])
    claim(config)
    with pytest.raises(ConfigError, match=r"search of one seed; .*--run-dir .*/one-seeds"):
        launch_seeds(config, 2)
    config = load_config(config_file, [f"--run_dir={tmp_path}/several"])
    (tmp_path / "several").mkdir()
    average = make_mixture({"a": 0.5, "b": 0.5}, seeds=(1, 2, 3))
    write_mixture(tmp_path / "several/mixture.json", average)
    with pytest.raises(ConfigError, match="average of seeds 1, 2, 3; go on with it by --seeds 3"):
        claim(config)


def test_the_average_of_seeds_replaces_no_blend_of_the_users(
    config_file: Path, tmp_path: Path
) -> None:
    blend = tmp_path / "mine/blend.txt"
    blend.parent.mkdir()
    blend.write_text("0.4 /d/a 0.6 /d/b\n")
    with pytest.raises(ConfigError, match=r"mine/blend\.txt: is there, .*move it away"):
        launch_seeds(load_config(config_file, [f"--run_dir={blend.parent}"]), 2)
    assert list(blend.parent.iterdir()) == [blend]


def test_a_finished_search_is_shown_for_the_budget_that_is_asked_for(
    config_file: Path, make_mixture: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = claim(load_config(config_file))
    write_mixture(folder.mixture, make_mixture({"a": 0.4, "b": 0.6}))
    asked = load_config(config_file, ["--output.token_budget=5M"])
    assert launch(asked, 1) == 0
    assert "Epochs are those in 5,000,000 tokens" in capsys.readouterr().out
    assert read_mixture(folder.path).epochs == {"a": 400, "b": 600}  # of 5,000 tokens each


def test_a_seed_that_would_be_refused_is_said_before_the_first_is_searched(
    config_file: Path, tmp_path: Path
) -> None:
    config = load_config(config_file, [f"--run_dir={tmp_path}/seeds", "--seed=7"])
    claim(load_config(config_file, [f"--run_dir={tmp_path}/seeds/seed-8", "--seed=8", "--lr=1"]))
    with pytest.raises(ConfigError, match=r"seed-8: holds a search with another configuration"):
        launch_seeds(config, 2)
    assert not (tmp_path / "seeds/seed-7").exists()


def test_a_finished_search_may_become_longer_and_nothing_else(config_file: Path) -> None:
    config = load_config(config_file)
    total = config.training.train_iters
    step = claim(config).checkpoint(total)
    step.mkdir(parents=True)
    (step / STATE_FILE).touch()
    other = load_config(config_file, ["--mixture.lr=3"])
    longer, shorter = (load_config(config_file, [f"--train-iters={total + n}"]) for n in (2, -2))
    for changed, advised in ((other, False), (longer, True), (shorter, False)):
        with pytest.raises(ConfigError, match="set these back") as caught:
            claim(changed)
        assert ("--accept-changes" in str(caught.value)) == advised
    with pytest.raises(ConfigError, match=rf"train_iters: was {total}, now {total - 2}\)"):
        claim(shorter, accept_changes=True)
    claim(longer, accept_changes=True)


def test_checkpoints_without_their_configuration_are_refused(config_file: Path) -> None:
    config = load_config(config_file)
    folder = claim(config)
    step = folder.checkpoint(3)
    step.mkdir(parents=True)
    (step / STATE_FILE).touch()
    claim(config)
    folder.config.unlink()
    with pytest.raises(ConfigError, match=r"run: holds checkpoints but no config\.yaml"):
        claim(config)
    assert not folder.config.exists()


def test_damaged_metrics_are_said_before_a_rank_resumes(config_file: Path) -> None:
    config = load_config(config_file)
    folder = claim(config)
    line = '{"kind": "inner", "step": 1}\n'
    folder.metrics.write_text(line + "{torn\n" + line)
    claim(config)  # nothing resumes
    step = folder.checkpoint(3)
    step.mkdir(parents=True)
    (step / STATE_FILE).touch()
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: .*delete the line"):
        claim(config)
    folder.metrics.write_text(line + '{"kind": "inn')  # as a kill leaves it
    claim(config)


def test_damaged_metrics_keep_no_finished_search_from_being_shown(config_file: Path) -> None:
    config = load_config(config_file)
    folder = claim(config)
    folder.metrics.write_text("{torn\n")
    step = folder.checkpoint(config.training.train_iters)
    step.mkdir(parents=True)
    (step / STATE_FILE).touch()
    claim(config)


def test_a_configuration_that_no_search_wrote_stays(search_values: dict[str, Any]) -> None:
    kept = Path(search_values["run_dir"]) / "config.yaml"
    kept.parent.mkdir()
    plain = yaml.safe_dump(search_values, sort_keys=False)
    kept.write_text(plain)
    config = load_config(kept)
    for text in (f"# my notes: the third try\n{plain}", plain, "mine: 1\n"):
        kept.write_text(text)
        for start in (claim, lambda found: check_hosts(found, lambda token: {})):
            with pytest.raises(ConfigError, match=r"run/config\.yaml: is there, and no search"):
                start(config)
        assert kept.read_text() == text
        assert list(kept.parent.iterdir()) == [kept]


def test_a_folder_of_a_search_is_resumed_from_its_own_file(config_file: Path) -> None:
    config = load_config(config_file)
    kept = RunFolder(Path(config.run_dir)).config
    kept.parent.mkdir()
    kept.write_text(dump_config(config))  # killed before anything else was written
    claim(load_config(kept))
    # Of an earlier release, which had fewer keys.
    values = yaml.safe_load(kept.read_text())
    del values["output"]["wandb_project"], values["groups"]
    kept.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    folder = claim(load_config(kept))
    assert kept.read_text() == dump_config(config)
    # Where it has begun, the file may have been edited.
    step = folder.checkpoint(3)
    step.mkdir(parents=True)
    (step / STATE_FILE).touch()
    kept.write_text(f"# my notes\n{dump_config(config)}")
    claim(load_config(kept))


@pytest.mark.parametrize("name", ["sources.json", "blend.txt", "blend.json", "metrics.jsonl"])
def test_files_in_a_folder_that_is_no_searchs_stay(config_file: Path, name: str) -> None:
    config = load_config(config_file)
    mine = Path(config.run_dir) / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=rf"run/{name}: is there, and no config\.yaml beside it"):
        claim(config)
    assert list(mine.parent.iterdir()) == [mine]
    assert mine.read_text() == "mine"


def test_run_dir_is_what_a_shell_would_make_of_it(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    flags = ["--run_dir=~/run", "--data.data_cache_path=~/cache", "--tensorboard-dir=~/tb"]
    config = load_config(config_file, flags)
    assert config.run_dir == str(tmp_path / "home/run")
    assert config.data.data_cache_path == str(tmp_path / "home/cache")
    assert config.output.tensorboard_dir == str(tmp_path / "home/tb")
    assert load_config(claim(config).config) == config
    for name in ("$SCRATCH/run", "runs/${USER}"):
        with pytest.raises(ConfigError, match=r"run_dir: found .* write the value of the variable"):
            load_config(config_file, [f"--run_dir={name}"])
    for name in ("5$", "a $(run)", "a~b", "./~/run"):
        assert load_config(config_file, [f"--run_dir={name}"]).run_dir == name
    # As an earlier release made them, which may hold a search.
    for name in ("~/run", "$SCRATCH/run"):
        Path(name).mkdir(parents=True)
        assert load_config(config_file, [f"--run_dir={name}"]).run_dir == name
