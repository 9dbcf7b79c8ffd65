"""The colours of all pictures, told apart by readers with and without colour blindness."""

import itertools

import numpy as np
import pytest

from megatron_fastmix.report.palette import (
    COLOURS,
    DARK_COLOURS,
    DASHES,
    MOST_LINES,
    css,
    css_class,
    line_style,
)

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65, of linear RGB."""
    t = (TO_XYZ @ rgb) / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def ciede2000(one: np.ndarray, two: np.ndarray) -> float:
    """Sharma, Wu and Dalal 2005."""
    chroma = (np.hypot(*one[1:]) + np.hypot(*two[1:])) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    (l1, a1, b1), (l2, a2, b2) = one, two
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1 = np.degrees(np.arctan2(b1, a1 * stretch)) % 360
    h2 = np.degrees(np.arctan2(b2, a2 * stretch)) % 360
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * cosine(hue - 30) + 0.24 * cosine(2 * hue)
    t += 0.32 * cosine(3 * hue + 6) - 0.20 * cosine(4 * hue - 63)
    by_lightness = 1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2)
    dl = (l2 - l1) / by_lightness
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    twist = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    twist *= np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + twist * dc * dh))


def cosine(degrees: float) -> float:
    return float(np.cos(np.radians(degrees)))


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [  # of the test data of Sharma, Wu and Dalal
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_is_that_of_the_literature(one, two, expected):
    assert ciede2000(np.array(one, float), np.array(two, float)) == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [COLOURS, DARK_COLOURS])
def test_any_two_colours_are_told_apart(vision, colours):
    assert len(colours) == 8
    seen = [lab(np.clip(VISION[vision] @ linear(colour), 0, 1)) for colour in colours]
    assert min(ciede2000(a, b) for a, b in itertools.combinations(seen, 2)) >= 15


@pytest.mark.parametrize(("colours", "paper"), [(COLOURS, "#ffffff"), (DARK_COLOURS, "#14161a")])
def test_lines_stand_out_from_the_paper(colours, paper):
    """Contrast of relative luminance, as in WCAG."""
    light = [TO_XYZ[1] @ linear(colour) + 0.05 for colour in (*colours, paper)]
    assert all(max(one, light[-1]) / min(one, light[-1]) > 2.5 for one in light[:-1])


def test_lines_from_the_ninth_on_are_dashed():
    styles = [line_style(place) for place in range(MOST_LINES)]
    assert len(set(styles)) == MOST_LINES
    assert all(dashes == () for _, dashes in styles[:8])
    assert all(dashes for _, dashes in styles[8:])
    assert [css_class(place) for place in (0, 8, 17, None)] == ["c0", "c0 d1", "c1 d2", "rest"]
    sheet = css()
    assert all(sheet.count(colour) == 2 for colour in COLOURS)  # on white, and on paper
    assert all(sheet.count(colour) == 1 for colour in DARK_COLOURS)
    assert all(f".line.d{i} {{ stroke-dasharray" in sheet for i in range(1, len(DASHES)))
