"""A self-contained HTML page from sections: no scripts, no network access, no other files.

Its Content-Security-Policy allows only its own styles and embedded images, so it can be opened anywhere, mailed and
archived. Every task adds its sections: a Section is a title and HTML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from elk_jax import files
from elk_jax.reporting.html import text
from elk_jax.reporting.style import style_sheet

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Ccircle cx='8' cy='8' r='5' fill='none' stroke='%231f6fb2' stroke-width='3'/%3E%3C/svg%3E"
)


@dataclass(frozen=True)
class Section:
    """A part of the page: title as plain text, content as HTML (see html.py, figures.py, pictures.py)."""

    title: str
    html: str
    note: str = ""  # plain text under the title


@dataclass(frozen=True)
class Report:
    """The content of a page."""

    title: str
    summary: str = ""  # the result in one or two sentences
    kicker: str = "elk_jax report"  # a small line above the title
    facts: Mapping[str, str] = field(default_factory=dict)  # a few short facts under the title
    sections: Sequence[Section] = ()
    footer: str = ""


def build_report(report: Report) -> str:
    """The page as a string. Equal reports give equal pages."""
    anchors = _anchors([section.title for section in report.sections])
    contents = "".join(
        f'<a href="#{anchor}">{text(section.title)}</a>' for anchor, section in zip(anchors, report.sections)
    )
    facts = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in report.facts.items())
    body = "".join(_section(anchor, section) for anchor, section in zip(anchors, report.sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(report.title)}</title>
<link rel="icon" href="{_ICON}">
<style>
{style_sheet()}
</style>
</head>
<body>
<header>
<p class="kicker">{text(report.kicker)}</p>
<h1>{text(report.title)}</h1>
{f'<p class="lead">{text(report.summary)}</p>' if report.summary else ""}
{f'<dl class="facts">{facts}</dl>' if facts else ""}
<nav aria-label="Contents">{contents}</nav>
</header>
<main>
{body}
</main>
<footer>{text(report.footer)}</footer>
</body>
</html>
"""


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Write the page atomically."""
    files.write_text(path, build_report(report))


def _section(anchor: str, section: Section) -> str:
    note = f'<p class="soft">{text(section.note)}</p>' if section.note else ""
    return f'<section id="{anchor}"><h2>{text(section.title)}</h2>{note}{section.html}</section>\n'


def _anchors(titles: Sequence[str]) -> list[str]:
    anchors: list[str] = []
    for title in titles:
        plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        repeats = sum(anchor == plain or anchor.startswith(f"{plain}--") for anchor in anchors)
        anchors.append(f"{plain}--{repeats + 1}" if repeats else plain)
    return anchors
