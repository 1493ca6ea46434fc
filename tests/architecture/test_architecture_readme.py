"""The README is short, its links lead somewhere, and from it every page can be found."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)[^)]*\)")


def test_the_readme_has_fewer_than_150_lines() -> None:
    assert len(README.splitlines()) < 150


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall(README))
    pages = {str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").glob("*.md")}
    assert len(pages) > 10
    assert pages - linked == set()


def test_links_between_pages_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    links = [(page, link) for page in pages for link in LINK.findall(page.read_text(encoding="utf-8"))]
    assert len(links) > 30
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    top = re.findall(r"^([\w.-]+/?)\s", tree, flags=re.MULTILINE)
    assert {"stages/", "sluice/", "configs/"} <= set(top)
    assert [name for name in top if not (REPOSITORY / name).exists()] == []
    below = tree.split("stages/\n")[1].split("benchmarks/")[0]
    named = set(re.findall(r"^  ([\w.-]+)/?\s", below, flags=re.MULTILINE))
    stages = {path.name for path in (REPOSITORY / "stages").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert named == stages - {"__init__.py", "__pycache__"}
