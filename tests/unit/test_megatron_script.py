"""Scripts and modules run as they would alone, with the mixture in Megatron-core's builder."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.megatron.script import enter
from tests.conftest import SEQ_LENGTH, SOURCES

ROOT = Path(__file__).parents[2]
# Such as the scripts of Megatron-Bridge: no arguments of megatron.training.
SCRIPT = f"""
import json, sys
from pathlib import Path
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
import beside

output, *blend = sys.argv[1:]
config = GPTDatasetConfig(
    random_seed=5, sequence_length={SEQ_LENGTH}, blend=(blend, [1.0] * len(blend)),
    split="100,0,0", tokenizer=load_tokenizer("ByteLevelTokenizer"), reset_position_ids=False,
    reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
)
train = BlendedMegatronDatasetBuilder(GPTDataset, [80, 0, 0], lambda: True, config).build()[0]
found = {{
    "name": __name__,
    "argv": sys.argv,
    "beside": beside.VALUE,
    "class": type(train).__name__,
    "paths": [dataset.dataset_path for dataset in train.datasets],
    "draws": train.draws_before(80),
}}
Path(output).write_text(json.dumps(found))
sys.exit(7)
"""


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "megatron_fastmix.megatron", *map(str, arguments)],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_script_without_megatrons_arguments_gets_the_mixture(corpora, tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 11")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    schedule = tmp_path / "s.yaml"
    schedule.write_text(
        "schedule:\n- at_sample: 0\n  weights: {forward: 0.5, backward: 0.25, noise: 0.25}\n"
        "- at_sample: 40\n  weights: {forward: 0, backward: 0, noise: 1}\n"
    )
    output = tmp_path / "out.json"
    paths = [corpora / name for name in SOURCES]
    flags = [f"--fastmix-source={path.name}={path}" for path in paths]
    flags += [f"--fastmix-schedule={schedule}", "--fastmix-block-size=8"]
    ended = run(script, output, *reversed(paths), *flags, cwd=tmp_path.parent)
    assert ended.returncode == 7, ended.stderr
    found = json.loads(output.read_text())
    assert found == {
        "name": "__main__",
        "argv": [str(script), str(output), *map(str, reversed(paths))],
        "beside": 11,
        "class": "FastMixBlendedDataset",
        "paths": [str(path) for path in paths],
        "draws": {"forward": 20, "backward": 10, "noise": 50},
    }
    module = run("-m", "train", output, *paths, *flags, cwd=tmp_path)
    assert module.returncode == 7, module.stderr
    found = json.loads(output.read_text())
    assert found["name"] == "__main__"
    assert Path(found["argv"][0]).name == "train.py"
    loss = run(script, output, *paths, *flags, "--fastmix-weighting=loss", cwd=tmp_path)
    if find_spec("megatron.training") is None:
        assert loss.returncode == 2
        assert "this environment has no megatron.training" in loss.stderr
    else:
        assert "the mixture was not applied: the script handed no arguments" in loss.stderr
    (tmp_path / "other.py").write_text("print('trained')")
    other = run("other.py", *flags, cwd=tmp_path)
    assert (other.returncode, other.stdout) == (0, "trained\n")
    assert "the mixture was not applied: the script" in other.stderr


def test_help_and_mistakes_end_with_a_message(tmp_path):
    shown = run("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "--fastmix-mixture RUN" in shown.stdout
    wrong = run("train.py", "--fastmix-mixture", "r", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "megatron_fastmix.megatron: train.py: no such script; give a script, or -m MODULE\n"
    )


def test_the_scripts_folder_comes_before_everything(tmp_path, monkeypatch):
    script = tmp_path / "s.py"
    script.write_text("")
    monkeypatch.setattr(sys, "path", ["/first", str(tmp_path)])
    monkeypatch.setattr(sys, "argv", [])
    enter([str(script), "--lr", "1"])
    assert sys.path == [str(tmp_path), "/first"]
    assert sys.argv == [str(script), "--lr", "1"]
    with pytest.raises(ConfigError, match="no such script"):
        enter([str(tmp_path / "none.py")])
