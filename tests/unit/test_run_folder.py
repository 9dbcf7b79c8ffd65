"""What may change between the parts of one search."""

from pathlib import Path

import pytest

from megatron_fastmix.checkpoint.store import STATE_FILE
from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.claim import claim


@pytest.mark.parametrize("key", ["mixture.lr", "mixture.inner_steps"])
def test_a_change_must_be_accepted(config_file: Path, key: str) -> None:
    claim(load_config(config_file))
    changed = load_config(config_file, [f"--{key}=3"])
    with pytest.raises(ConfigError, match=rf"{key}: was .*--accept-changes"):
        claim(changed)
    claim(changed, accept_changes=True)
    assert load_config(RunFolder(Path(changed.run_dir)).config) == changed


def test_under_sampling_inner_steps_must_stay(config_file: Path) -> None:
    """They say at which draw each past mixture held."""
    sampling = "--mixture.weighting=sampling"
    claim(load_config(config_file, [sampling]))
    changed = load_config(config_file, [sampling, "--mixture.inner_steps=3"])
    with pytest.raises(ConfigError, match=r"inner_steps: was 2, now 3.*set these back") as caught:
        claim(changed, accept_changes=True)
    assert "--accept-changes" not in str(caught.value)


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
