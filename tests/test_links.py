"""Links of the documentation, and pages that code names, exist."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for name in ("docs", "benchmarks", "data_prep") for page in (ROOT / name).rglob("*.md")),
    ]
)
CODE = [
    path for name in ("elk_jax", "configs", "launch", "data_prep", "benchmarks") for path in (ROOT / name).rglob("*.*")
]
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


@lru_cache
def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them from its headings."""
    lines = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_of_a_page_exist(page):
    for place, anchor in LINK.findall(BLOCK.sub("", page.read_text())):
        if not place.startswith(("http:", "https:")):
            target = (page.parent / place).resolve() if place else page
            assert target.exists(), place
            assert not anchor or anchor in headings(target), f"{place}#{anchor}"


def test_pages_that_code_names_exist():
    named = {
        name
        for path in CODE
        if path.suffix in (".py", ".sh")
        for name in re.findall(r"docs/[\w/]+\.md", path.read_text())
    }
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
