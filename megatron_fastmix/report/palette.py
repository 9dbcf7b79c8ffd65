"""The colours and dashes of every picture: a line's place in its picture decides both.

Any two of the eight colours are told apart by readers with and without colour blindness: under
deuteranopia and protanopia (Machado et al. 2009) their CIEDE2000 difference is at least 15. From
the ninth line on the colours come again, dashed.
"""

from __future__ import annotations

COLOURS = (
    *("#0072b2", "#d55e00", "#2d6c60", "#e87f8a", "#161015", "#919ac6", "#603605", "#100780"),
)
"""On white."""
DARK_COLOURS = (
    *("#5ab4f0", "#ff8a4c", "#188a7e", "#96f0b7", "#ecf8ff", "#8346f5", "#8a5939", "#ffff00"),
)
"""On the page in a dark theme, #14161a."""
REST = "#b4b8bd"
"""Lines that are too many for a colour of their own."""
DASHES = ((), (5.0, 1.5), (1.0, 1.2))
"""Lengths of dashes and gaps in line widths, one pattern for each round through the colours."""
MOST_LINES = len(COLOURS) * len(DASHES)
"""Lines that can be told apart."""


def line_style(place: int) -> tuple[str, tuple[float, ...]]:
    """Colour on white and dashes of the line at `place`, from 0; past the last they repeat."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def css_class(place: int | None) -> str:
    """The classes of a line in the page; None for one in the background."""
    if place is None:
        return "rest"
    rounds = place // len(COLOURS) % len(DASHES)
    return f"c{place % len(COLOURS)}" + (f" d{rounds}" if rounds else "")


def css() -> str:
    """The style sheet's part about lines: their colours in both themes, and their dashes."""
    rules = [_variables(":root", COLOURS)]
    rules.append(f"@media (prefers-color-scheme: dark) {{ {_variables(':root', DARK_COLOURS)} }}")
    rules.append(f"@media print {{ {_variables(':root', COLOURS)} }}")
    for i in range(len(COLOURS)):
        rules.append(f"svg .c{i} {{ stroke: var(--c{i}); }}")
        rules.append(f"svg .band.c{i} {{ fill: var(--c{i}); stroke: none; }}")
    for i, dashes in enumerate(DASHES):
        if dashes:
            lengths = " ".join(f"{2 * length:g}" for length in dashes)  # lines are 2 px wide
            rules.append(f"svg .line.d{i} {{ stroke-dasharray: {lengths}; }}")
    return "\n".join(rules) + "\n"


def _variables(selector: str, colours: tuple[str, ...]) -> str:
    return f"{selector} {{ {' '.join(f'--c{i}: {c};' for i, c in enumerate(colours))} }}"
