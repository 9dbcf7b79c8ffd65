"""The three Megatron forms through `megatron.training`'s own argument parser."""

import argparse
import shlex

import pytest

from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.registry import FORMATS

training = pytest.importorskip(
    "megatron.training.arguments", reason="megatron-core 0.19 and newer ship megatron.training"
)


def parse(flags: str):
    """(blend, blend_per_split) as a Megatron run with these flags would have them."""
    from megatron.training.utils import get_blend_and_blend_per_split

    parser = argparse.ArgumentParser(allow_abbrev=False)
    training.add_megatron_arguments(parser)
    return get_blend_and_blend_per_split(parser.parse_args(shlex.split(flags)))


@pytest.mark.parametrize("folder", ["/data", "/my data's"])
def test_megatrons_argument_parser_reads_every_form(tmp_path, make_mixture, folder):
    blend = make_blend(make_mixture({"a": 0.7, "b": 0.3, "c": 0.0}, folder=folder))
    expected = ([f"{folder}/a", f"{folder}/b"], [0.7, 0.3])
    assert parse(FORMATS["megatron-cli"].render(blend)) == (expected, None)
    file = tmp_path / "blend"
    file.write_text(FORMATS["megatron-per-split"].render(blend))
    valid = ([f"{folder}/target"], None)
    assert parse(f"--per-split-data-args-path {file}") == (None, [expected, valid, None])
    if folder == "/data":
        file.write_text(FORMATS["megatron-data-args"].render(blend))
        assert parse(f"--data-args-path {file}") == (expected, None)
