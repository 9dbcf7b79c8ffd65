"""What an export leaves alone, and that it replaces every earlier one."""

import dataclasses

import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.earlier_export import is_export
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard

ODD = "/a: 'b' \"c\" #d é"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("targets", [1, 2])
def test_every_format_is_known_again(tmp_path, make_mixture, name, targets):
    folder = "/d" if name in ("megatron-data-args", "model-optimizer") else ODD
    mixture = make_mixture({"a": 0.7, "dataset": 0.2999, "streams": 0.0001}, folder=folder)
    several = (mixture.sources[0].shards[0], Shard(path="/d/2", tokens=9, loss_tokens=9, rows=9))
    of_several = dataclasses.replace(mixture.sources[0], shards=several)
    sources = (of_several, *mixture.sources[1:])
    all_targets = tuple(
        dataclasses.replace(mixture.targets[0], name=f"t{n}", weight=1 / targets)
        for n in range(targets)
    )
    mixture = dataclasses.replace(mixture, sources=sources, targets=all_targets)
    write_mixture(tmp_path / "mixture.json", mixture)
    output = tmp_path / "out"
    output.touch()  # as `mktemp` leaves it
    call = ["export", str(tmp_path), "--format", name, "--output", str(output)]
    assert main(call) == main([*call, "--decimals", "6"]) == 0
    unit = FORMATS[name].unit(None)
    assert output.read_text() == FORMATS[name].render(make_blend(mixture, unit, decimals=6))


NEMO = "model:\n  data:\n    data_prefix:\n    - 1.0\n    - /d/a\n"


@pytest.mark.parametrize(
    "text",
    [
        "my own text\n",
        "12 monkeys\n3 apples\n",
        "0.3 /d/a 0.7 /d/b\nand what I think of it\n",
        "--data-path 0.3 /d/a 0.7 /d/b --bf16\n",
        "--data-path 0.3 /d/a 0.7 '/d/b\n",
        "--data-path 0.3 /d/a 0.7 /d/b\npython train.py\n",
        "paths=[0.3, '/d/a']\n",
        "paths=5\n",
        '{"text": "a corpus"}',
        '{"train": [1.0, "/d/a"], "valid": null, "test": null, "mine": 1}',
        '{"train": ',
        f"# tuned by hand\n{NEMO}",
        f"{NEMO}trainer:\n  num_nodes: 8\n",
        "datasets:\n- output_prefix: out/web\n",
        "streams: []\n",
        "[" * 5000,
        "from datasets import interleave_datasets\n\nSOURCES = {\n}\nmine()\n",
    ],
)
def test_a_users_file_stays(tmp_path, make_mixture, capsys, text):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.6, "b": 0.4}))
    output = tmp_path / "mine.txt"
    output.write_text(text)
    assert main(["export", str(tmp_path), "--format", "nemo-1", "--output", str(output)]) == 2
    assert f"--output: {output} is there, and no earlier export" in capsys.readouterr().err
    assert output.read_text() == text


def test_a_link_and_a_corpus_stay(tmp_path, make_mixture, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.6, "b": 0.4}))
    link, large = tmp_path / "link.txt", tmp_path / "large"
    link.symlink_to("blend.txt")
    assert main(["export", str(tmp_path), "--output", str(link)]) == 2
    assert f"{link} is a link" in capsys.readouterr().err
    assert link.is_symlink() and not link.exists()
    with open(large, "w") as file:
        file.truncate(1 << 27)
    assert not is_export(large)
    assert not is_export("/dev/null/x")
