"""A schedule as Megatron's phases."""

import dataclasses
import shlex

import pytest
from megatron.core.datasets.utils import get_blend_from_list

from megatron_fastmix.blend import LiveMixture, WeightSchedule
from megatron_fastmix.blend.weight_schedule import Change
from megatron_fastmix.cli import main as cli
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.megatron_phases import phases
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard

PATHS = {"web": "/d/web", "code": "/d/my code", "math": "/d/math"}


def schedule_of(*changes):
    names = list(PATHS)
    return WeightSchedule(
        changes=tuple(
            Change(at_sample=at, weights=dict(zip(names, weights, strict=True)))
            for at, weights in changes
        )
    )


def parsed(text):
    """(flags, paths, weights) of every line that is no comment."""
    lines = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    result = []
    for words in lines:
        at = words.index("--data-path")
        result.append((words[:at], *get_blend_from_list(words[at + 1 :])))
    return result


def test_every_phase_has_its_weights_and_the_same_transitions():
    schedule = schedule_of((0, (2, 1, 1)), (2560, (0, 3, 1)), (7680, (1, 0, 0)))
    text = phases(schedule, PATHS, global_batch_size=256, train_samples=25600, decimals=4)
    assert text.startswith("# phase 1 of 3: samples 0 to 2560\n")
    lines = parsed(text)
    for flags, _, _ in lines:
        assert flags == [
            *("--phase-transition-iterations", "10,30"),
            *("--train-samples", "25600", "--global-batch-size", "256"),
        ]
    assert [(paths, weights) for _, paths, weights in lines] == [
        (["/d/web", "/d/my code", "/d/math"], [0.5, 0.25, 0.25]),
        (["/d/my code", "/d/math"], [0.75, 0.25]),
        (["/d/web"], [1.0]),
    ]


def test_a_mixture_that_has_moved_can_be_run_again_as_phases():
    mixture = LiveMixture({"web": 1, "code": 1, "math": 2}, block_size=64)
    mixture.update({"web": 1, "code": 0, "math": 0}, at_sample=128)
    text = phases(mixture.schedule(), PATHS, global_batch_size=64, train_samples=1000, decimals=4)
    assert [weights for _, _, weights in parsed(text)] == [[0.25, 0.25, 0.5], [1.0]]
    assert "--phase-transition-iterations 2 " in text


def test_one_phase_needs_no_transition():
    text = phases(
        schedule_of((0, (1, 1, 2))), PATHS, global_batch_size=4, train_samples=100, decimals=4
    )
    assert "--phase-transition-iterations" not in text
    assert len(parsed(text)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 300}, "found 2560, .* so use 2700"),
        ({"train_samples": 2560}, "train_samples: found 2560; the last change"),
    ],
)
def test_what_megatron_cannot_run_is_refused(arguments, message):
    values = {"global_batch_size": 256, "train_samples": 9999, "decimals": 4} | arguments
    with pytest.raises(ConfigError, match=message):
        phases(schedule_of((0, (1, 1, 1)), (2560, (1, 1, 0))), PATHS, **values)


@pytest.mark.parametrize("total", [1, 1_000_000])
def test_no_dataset_of_a_source_of_many_is_lost(make_mixture, tmp_path, capsys, total):
    mixture = make_mixture({"prose": 0.1, "code": 0.9})
    shards = tuple(
        Shard(path=f"/data/prose/{n}", tokens=5, loss_tokens=5, rows=1) for n in range(3000)
    )
    sources = (dataclasses.replace(mixture.sources[0], shards=shards), mixture.sources[1])
    write_mixture(tmp_path / "mixture.json", dataclasses.replace(mixture, sources=sources))
    (tmp_path / "s.yaml").write_text(
        f"schedule:\n- at_sample: 0\n  weights: {{prose: {0.1 * total}, code: {0.9 * total}}}\n"
    )
    arguments = ["export-schedule", str(tmp_path / "s.yaml"), str(tmp_path)]
    assert cli.main([*arguments, "--global-batch-size=4", "--train-samples=40"]) == 0
    assert capsys.readouterr().out.count("/data/prose/") == 3000


def test_a_source_that_rounds_to_nothing_is_said(make_mixture, tmp_path, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"web": 0.5, "code": 0.5, "math": 0}))
    schedule_of((0, (1, 1, 0)), (8, (0.99997, 0, 0.00003))).write(tmp_path / "s.yaml")
    arguments = ["export-schedule", str(tmp_path / "s.yaml"), str(tmp_path)]
    assert cli.main([*arguments, "--global-batch-size=4", "--train-samples=40"]) == 0
    said = capsys.readouterr().err
    assert "phase 2 leaves out what rounds to 0 at 4 decimals: math\n" in said
    assert "phase 1" not in said


def test_the_command_reads_a_schedule_and_the_paths_of_a_run(make_mixture, tmp_path, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"web": 0.5, "code": 0.5, "math": 0}))
    schedule_of((0, (1, 1, 0)), (8, (0, 0, 1))).write(tmp_path / "schedule.yaml")
    flags = ["--global-batch-size", "4", "--train-samples", "40"]
    command = ["export-schedule", str(tmp_path / "schedule.yaml"), str(tmp_path), *flags]
    assert cli.main(command) == 0
    good = capsys.readouterr()
    assert [paths for _, paths, _ in parsed(good.out)] == [
        ["/data/web", "/data/code"],
        ["/data/math"],
    ]
    assert "unless --seed changes with the phase" in good.err
    assert "relative" not in good.err
    assert cli.main([*command, "--path-map", "/data=/lustre/d"]) == 0
    assert [paths for _, paths, _ in parsed(capsys.readouterr().out)] == [
        ["/lustre/d/web", "/lustre/d/code"],
        ["/lustre/d/math"],
    ]
    for size in ("0", "-4"):
        assert cli.main([size if word == "4" else word for word in command]) == 2
        assert f"--global-batch-size: found {size}" in capsys.readouterr().err
    command[-1] = "8"
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("megatron-fastmix: train_samples: found 8")
