"""The documentation site builds without a warning, has every guide and public name, and needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest

from readme import ROOT

pytest.importorskip("mkdocs", reason="the site is built with the extra 'docs'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("latex2mathml", "material", "mermaidx", "mkdocstrings"):
        pytest.importorskip(needed, reason="the site is built with the extra 'docs'")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", target]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return target


def pages(site: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_every_guide_is_a_page(site: Path) -> None:
    for guide in (ROOT / "docs").rglob("*.md"):
        page = guide.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / page).is_file() or page.name == "README.html", page
    assert (site / "index.html").is_file()


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    texts = pages(site)
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    for path, text in texts.items():
        if path.name == "404.html":
            continue  # it is shown for any address, and links from the root
        for link in re.findall(r'<a [^>]*\bhref="([^"]+)"', text):
            place, _, anchor = unquote(link).partition("#")
            if "://" in link or link.startswith("mailto:"):
                continue
            target = (path.parent / place).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if anchor and not anchor.startswith("__"):
                assert anchor in anchors[target], f"{path.relative_to(site)}: {link}"


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    loaded = r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//|<link\b[^>]*\bhref="(?:https?:)?//'
    for path, text in pages(site).items():
        assert not re.search(loaded, text), path.relative_to(site)
        assert 'class="mermaid"' not in text, "the theme would load mermaid from another server"


@pytest.mark.parametrize("room", ["registry", "suites", "results"])
def test_every_public_name_is_in_the_reference(site: Path, room: str) -> None:
    text = (site / "api" / f"{room}.html").read_text(encoding="utf-8")
    for name in import_module(f"convbench.{room}").__all__:
        assert f'id="convbench.{room}.{name}"' in text, name


def test_formulas_need_no_script(site: Path) -> None:
    chapter = (site / "chapter.html").read_text(encoding="utf-8")
    assert "<math" in chapter
    assert "arithmatex" not in chapter


def test_a_diagram_is_drawn_when_the_site_is_built(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    drawn = import_module("site_pages").diagram("flowchart LR\n  job --> worker --> row\n")
    assert "<svg" in drawn
    assert ">worker<" in drawn


def test_no_arrow_of_a_diagram_crosses_a_title(site: Path) -> None:
    text = (site / "architecture.html").read_text(encoding="utf-8")
    number = r"(-?[\d.]+)"
    titles = re.findall(
        rf'class="cluster-label" transform="translate\({number}, {number}\)"><foreignObject '
        rf'width="{number}" height="{number}"',
        text,
    )
    arrows = re.findall(r'<path d="([^"]+)"[^>]* class="[^"]*flowchart-link', text)
    assert titles
    assert arrows
    for arrow in arrows:
        points = [(float(x), float(y)) for x, y in re.findall(rf"{number},{number}", arrow)]
        for title in titles:
            left, top, width, height = map(float, title)
            for (x, y), (next_x, next_y) in pairwise(points):
                for step in range(21):
                    across, down = x + (next_x - x) * step / 20, y + (next_y - y) * step / 20
                    assert not (left < across < left + width and top < down < top + height), (title, arrow)
