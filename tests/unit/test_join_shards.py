"""A blend's shards become sources again."""

from __future__ import annotations

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.join_shards import join_shards


@pytest.mark.parametrize(
    "shards",
    [
        ["/d/web_00000", "/d/web_00001", "/d/web_00010"],
        ["/d/web-part-2", "/d/web-part-10"],
        ["/d/web.shard1", "/d/web.shard2"],
        ["/d/web_1-of-2", "/d/web_2-of-2"],
        ["/d/web_00_text_document", "/d/web_01_text_document"],
        ["/d/web-part001_content_sentence", "/d/web-part002_content_sentence"],
    ],
)
def test_numbered_parts_are_one_source(shards):
    joined = join_shards(["/d/code", *shards[::-1], "/d/books"])
    assert joined == {"code": ["/d/code"], "web": shards, "books": ["/d/books"]}
    assert len(join_shards(shards, numbered=False)) == len(shards)


@pytest.mark.parametrize(
    "others",
    [
        ["/d/wiki_2019", "/d/wiki_2020"],
        ["/d/c4", "/d/c5"],
        ["/one/web_00", "/two/web_01"],
        ["/d/web_00_text_document", "/d/web_01"],
        ["/d/00001", "/d/00002"],
    ],
)
def test_other_numbers_join_nothing(others):
    assert list(join_shards(others).values()) == [[other] for other in others]


def test_patterns_join_what_they_fit():
    blend = ["/d/cc_head", "/d/cc_tail", "/x/wiki_2019", "/x/wiki_2020", "/d/cc"]
    assert join_shards(blend, ["cc_*", "wikipedia=/x/*"]) == {
        "cc": ["/d/cc_head", "/d/cc_tail"],
        "wikipedia": ["/x/wiki_2019", "/x/wiki_2020"],
        "cc_2": ["/d/cc"],
    }
    with pytest.raises(ConfigError, match="--join web_\\*: fits no dataset"):
        join_shards(blend, ["web_*"])
    with pytest.raises(ConfigError, match="/d/cc_head fits --join cc_\\* too"):
        join_shards(blend, ["cc_*", "x=*_head"])


def test_a_joined_source_has_the_sum_of_the_weights(tmp_path, capsys):
    (tmp_path / "blend.txt").write_text("1 /d/web_00 2 /d/web_01 1 /d/code")
    assert main(["import", str(tmp_path / "blend.txt")]) == 0
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out) == {
        "sources": [
            {"name": "web", "path": ["/d/web_00", "/d/web_01"]},
            {"name": "code", "path": "/d/code"},
        ],
        "mixture": {"initial_weights": [0.75, 0.25]},
    }
    assert "note: web is 2 datasets" in captured.err


def test_weights_follow_a_configuration_with_shards(tmp_path, corpora, search_values, capsys):
    search_values["sources"][0]["path"] = [f"{corpora}/forward", f"{corpora}/forward_copy"]
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump(search_values))
    (tmp_path / "blend.txt").write_text(
        f"1 {corpora}/noise 2 {corpora}/forward 1 {corpora}/backward 4 {corpora}/forward_copy"
    )
    call = ["import", str(tmp_path / "blend.txt"), "--config", str(config)]
    assert main(call) == 0
    section = yaml.safe_load(capsys.readouterr().out)
    assert section == {"mixture": {"initial_weights": [0.75, 0.125, 0.125]}}
    assert main([*call, "--join", "x*"]) == 2
    assert "--join: the sources of --config" in capsys.readouterr().err
