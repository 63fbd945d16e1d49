"""The figures of inspected models as one page that needs nothing else, light and dark."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vitlab.plotting import COLOURS, GRID, INK, SOFT
from vitlab.report.page import template

VARIABLES = {"#ffffff": "--paper", INK: "--ink", SOFT: "--soft", GRID: "--line"} | {
    colour.lower(): f"--c{number}" for number, colour in enumerate(COLOURS)
}  # colours of figures, and those of the page that follow its theme
WIDE = 460  # points; a wider figure has a line of its own


class Drawn(NamedTuple):
    """A figure of the page.

    Args:
        key: name of its files, beside the page.
        title: a few words.
        caption: what is drawn.
        svg: as matplotlib writes it.
    """

    key: str
    title: str
    caption: str
    svg: str


def page(title: str, source: str, figures: Sequence[Drawn], missing: Sequence[str], facts: Mapping[str, str]) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        source: a line below it.
        figures: in their order.
        missing: a line for what there is no figure of, and why.
        facts: of how it was made, by name.
    """
    parts = ['<div class="figures">', *map(figure, figures), "</div>"]
    if missing:
        parts += ["<h2>What is not here</h2>", *(f"<p>{html.escape(line)}</p>" for line in missing)]
    rows = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    parts += ["<h2>How this was made</h2>", "<dl>", *rows, "</dl>"]
    found = {"title": html.escape(title), "source": html.escape(source), "body": "\n".join(parts)}
    return re.sub(r"\{\{(\w+)\}\}", lambda name: found[name[1]], template("inspection.html"))


def figure(drawn: Drawn) -> str:
    """A figure with its caption and its files."""
    key, title = html.escape(drawn.key), html.escape(drawn.title)
    svg = themed(drawn.svg).replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    width = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    wide = ' class="wide"' if width and float(width[1]) > WIDE else ""
    files = " ".join(f'<a href="{key}.{kind}">{kind.upper()}</a>' for kind in ("png", "svg", "csv"))
    caption = f"{html.escape(drawn.caption)} {files}"
    return f'<figure id="{key}"{wide}><h3>{title}</h3>{svg}<figcaption>{caption}</figcaption></figure>'


def themed(svg: str) -> str:
    """The SVG element alone, its colours those of the page."""
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})",
        lambda found: f"{found[1]}: var({VARIABLES[found[2]]})" if found[2] in VARIABLES else found[0],
        svg,
    )
