"""The page and the result of hundreds of sources: the heaviest shown, the others searched for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_fastmix.report.charts import HEAVIEST, MANY
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from tests.unit.report_runs import write_search

NAMES = [f"{group}_{i:02d}" for i in range(44) for group in ("web", "code", "law", "art", "news")]
NAMES += [f"wiki_{i}" for i in range(MANY + 20 - len(NAMES))]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_search(tmp_path_factory.mktemp("many") / "run", NAMES)
    return write_report(read_runs([run]), run / "report", pictures=False)


def test_the_heaviest_are_rows_and_lines_and_the_others_wait(page: Path) -> None:
    text = page.read_text()
    rows = re.findall(r"<tr data-group=.*?</tr>", text, re.DOTALL)
    assert len(rows) == MANY
    (lighter,) = re.findall(r'class="lighter">(.*?)</script>', text, re.DOTALL)
    others = json.loads(lighter)
    assert len(others) == 20
    heaviest = re.findall(r'<th scope="row">(.*?)</th>', "".join(rows))
    assert sorted([*heaviest, *(cells[0] for _, cells in others)]) == sorted(NAMES)
    header = text[text.index('<table class="sources">') :].split("</thead>")[0]
    cells = len(re.findall(r"<th ", header))
    assert {len(texts) for _, texts in others} == {cells}
    assert len(re.findall(r"<t[hd][ >]", rows[0])) == cells
    data = [json.loads(found) for found in re.findall(r"json\">(\{.*?)</script>", text)]
    assert max(len(chart["series"]) for chart in data) == HEAVIEST
    assert f"Drawn are the {HEAVIEST} heaviest of {len(NAMES)} sources." in text
    assert f"{len(NAMES)}, listed in the run folder" in text
    assert len(text) < 1_000_000


def test_mixture_json_has_a_line_for_each_of_many_sources(page: Path, tmp_path: Path) -> None:
    file = page.parents[1] / "mixture.json"
    mixture = read_mixture(file)
    lines = [line for line in file.read_text().splitlines() if '"logit"' in line]
    assert len(lines) == len(NAMES)
    assert json.loads(lines[0].strip().rstrip(","))["name"] == mixture.sources[0].name
    write_mixture(tmp_path / "mixture.json", mixture)
    assert (tmp_path / "mixture.json").read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium (Debian's package has it)")
def test_a_search_finds_the_lightest(page: Path, tmp_path: Path) -> None:
    name = NAMES[-1]  # pulled down, so that it is no row at first
    act = (
        "<script>addEventListener('load', () => { const find = document.querySelector('.find');"
        f"find.value = '{name}'; find.dispatchEvent(new Event('input')); }});</script></body>"
    )
    acted = tmp_path / "acted.html"
    acted.write_text(page.read_text().replace("</body>", act))
    done = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"),
            acted.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    rows = re.findall(r"<tr [^>]*>.*?</tr>", done.stdout, re.DOTALL)
    listed = [row for row in rows if "data-group" in row]
    shown = [row for row in listed if "hidden" not in row.split(">")[0]]
    assert len(listed) == len(NAMES)
    assert len(shown) == 1
    assert name in shown[0]
