"""The page as a browser lays it out: nothing covers, overflows or fades, in any state."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import round_weights
from tests.unit.report_runs import write_search

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = Path(__file__).with_name("page_probe.js")
WIDTHS = (390, 768, 1400)

WORDS = ("commoncrawl", "wiki", "books", "arxiv", "github", "forums", "medicine", "law", "patents")
LONG = [f"{WORDS[i % 9]}_{i:02d}_with_a_name_of_thirty"[:30] for i in range(17)]
MANY = [f"{group}_{i:02d}" for group in ("web", "code", "maths", "books", "law") for i in range(40)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium (Debian's package has it)"),
]


def look(
    page: Path, folder: Path, probe: str = PROBE.read_text(), widths: Sequence[int] = WIDTHS
) -> dict:
    """What the probe finds on the page at all widths, in light, dark and on paper."""
    frames = "".join(
        f'<iframe src="{page.as_uri()}" width="{width}" height="900"></iframe>' for width in widths
    )
    frame = folder / "frames.html"
    frame.write_text(f'<pre id="result"></pre>{frames}<script>{probe}</script>')
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"),
            *("--virtual-time-budget=20000", "--window-size=1600,1000", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    text = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text is not None and text[1], done.stderr
    return json.loads(html.unescape(text[1]))


@pytest.fixture(params=["three sources", "17 long names", "200 sources", "two runs"])
def state(request, tmp_path):
    """What is shown, and the page."""
    names = {"17 long names": LONG, "200 sources": MANY}.get(request.param, ["web", "a & <b>", "c"])
    paths = [write_search(tmp_path / "run", names if request.param != "two runs" else LONG)]
    if request.param == "two runs":
        paths.append(write_search(tmp_path / "other", LONG, seed=2, lr=0.05))
    return request.param, write_report(read_runs(paths), tmp_path / "report", pictures=False)


def test_every_state_of_the_page_can_be_read(state, tmp_path):
    what, page = state
    found = look(page, tmp_path)
    for width in WIDTHS:
        for medium in ("light", "dark", "print"):
            if medium == "print" and width == 390:
                continue  # no paper is that narrow
            assert found[f"{medium} {width}"] == {"overflow": [], "contrast": [], "overlap": []}, (
                f"{medium} {width}"
            )
        did = found[f"behaviour {width}"]
        assert did["values"] == sorted(did["values"], reverse=True)
        assert 0 < did["swatches"] == len(did["values"]) <= 12
        assert did["csv"] == did["charts"] > 5
        assert not did["skipped"]  # no heading without the one above it
        if what == "200 sources":
            assert sorted(did["left"]) == sorted(name for name in MANY if "01" in name)
        if what != "two runs":
            assert did["copies"] >= 4


CUT = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  const boxes = [...frame.contentDocument.querySelectorAll(".first .scroll")];
  const cut = boxes.filter((box) => box.scrollWidth > box.clientWidth + 1);
  found[frame.width] = cut.map((box) => `${box.ariaLabel}: ${box.scrollWidth}`);
}
document.getElementById("result").textContent = JSON.stringify(found);
"""


def test_the_tables_of_the_first_screen_are_not_cut(tmp_path):
    """With every column that they may have, none of which is then scrolled to."""
    names, widths = ("web", "code", "maths"), (1024, 1200, 1280, 1440, 1920)
    run = write_search(tmp_path / "run", names, budget=4_000_000)
    mixture = read_mixture(run)
    rows = [
        {"record": "training", "setting": "s", "seed": seed, "loss": loss, "weights": weights}
        for which, off in ((mixture.weights, 0.0), (mixture.uniform, 0.1), (mixture.initial, 0.1))
        for weights in [round_weights(which)]
        for seed, loss in ((1, 2.0 + off), (2, 2.3 - off))
    ]
    (run / "comparison").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "comparison" / "rows.jsonl").write_text(text)
    page = write_report(read_runs([run]), tmp_path / "report", pictures=False)
    assert "(not told from\u00a00)" in page.read_text()
    assert '<th scope="col">capped</th>' in page.read_text()
    script = f'addEventListener("load", () => {{ {CUT} }})'
    assert look(page, tmp_path, script, widths) == {str(width): [] for width in widths}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (".y span {", ".y span { top: 0 !important; } .y span {", "overlap"),
        ("--faint: #5c6167;", "--faint: #c0c4c8;", "contrast"),
        (".scroll { overflow-x: auto; }", "table { min-width: 120rem; }", "overflow"),
    ],
)
def test_the_probe_sees_what_is_wrong(tmp_path, old, new, kind):
    run = write_search(tmp_path / "run", LONG)
    page = write_report(read_runs([run]), tmp_path / "report", pictures=False)
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new))
    assert look(page, tmp_path)["light 768"][kind]
