"""The pages of the documentation site that are not in docs/: READMEs, and the files that pages link to.

MkDocs calls the functions that begin with `on_`; mkdocs.yml names this file under `hooks`. A link that works in
the repository works in the site: a README becomes the page that `PAGES` names, any other file a page in `source/`.
"""

from __future__ import annotations

import hashlib
import html
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mermaidx
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "start.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "registry/README.md": "rooms/registry.md",
    "plugins/README.md": "rooms/plugins.md",
    "suites/README.md": "rooms/suites.md",
    "results/README.md": "rooms/results.md",
}
LANGUAGES = {
    "cpp": "cpp",
    "cu": "cpp",
    "cuh": "cpp",
    "hpp": "cpp",
    "py": "python",
    "toml": "toml",
    "yml": "yaml",
}
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```text (?:close|machine)$", re.MULTILINE)  # a mode of scripts/make_chapter.py
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_config(config: MkDocsConfig) -> None:
    """Draw `mermaid` blocks while the site is built: the theme would load a script from another server."""
    fence = {"name": "mermaid", "class": "diagram", "format": diagram}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]


def diagram(source: str, *_: Any, **__: Any) -> str:
    """A diagram in Mermaid's language as SVG, on a light ground in both colour schemes."""
    name = f"diagram-{hashlib.sha256(source.encode()).hexdigest()[:8]}"  # its style sheet selects by its id
    svg = mermaidx.render(source).svg().replace("my-svg", name)
    return f'<div style="background: white; padding: 1em">{svg}</div>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/, and those they link to in turn."""
    origins = [f"docs/{page.src_uri}" for page in files.documentation_pages()] + list(PAGES)
    known = set(origins)
    for origin in origins:  # the loop appends to it
        text = content(origin)
        if not origin.startswith("docs/"):
            files.append(File.generated(config, page_of(origin), content=text))
        if origin.endswith(".md") or (ROOT / origin).is_dir():
            found = {target for target in links(origin, text) if not target.startswith("docs/")}
            origins += sorted(found - known)
            known |= found
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let every link lead to a page of the site."""
    here = page.file.src_uri
    origin = origin_of(here)

    def rewritten(link: re.Match[str]) -> str:
        target = target_of(origin, link["path"])
        if target is None:
            return link[0]  # MkDocs warns of it
        return posixpath.relpath(page_of(target), posixpath.dirname(here)) + (link["anchor"] or "")

    return OUTPUT.sub("```text", outside_of_code(markdown, lambda text: LINK.sub(rewritten, text)))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas in MathML, which browsers show without a script."""
    return FORMULA.sub(
        lambda found: convert(
            html.unescape(found["tex"]), display="block" if found["tag"] == "div" else "inline"
        ),
        content,
    )


def outside_of_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change a page but for its fenced blocks."""
    parts = FENCED.split(markdown)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def links(origin: str, text: str) -> Iterator[str]:
    """The files of the repository that a page links to."""
    for part in FENCED.split(text)[::2]:
        for link in LINK.finditer(part):
            if target := target_of(origin, link["path"]):
                yield target


def target_of(origin: str, link: str) -> str | None:
    """The file that a link leads to, by its path in the repository; None where there is none."""
    target = posixpath.normpath(
        posixpath.join(origin if is_folder(origin) else posixpath.dirname(origin), link)
    )
    if is_folder(target):
        first = [f"{target}/{name}" for name in ("README.md", "table.md")]
        target = next((path for path in first if (ROOT / path).is_file()), target)
    return target if (ROOT / target).exists() and not target.startswith("..") else None


def page_of(target: str) -> str:
    """The page of a file, or its place among the files of the site."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return PAGES.get(target) or f"source/{target.removesuffix('.md')}.md"


def origin_of(page: str) -> str:
    """The file that a page was made of, by its path in the repository."""
    for origin, place in PAGES.items():
        if place == page:
            return origin
    if page.startswith("source/"):
        origin = page.removeprefix("source/")
        return origin if (ROOT / origin).is_file() else origin.removesuffix(".md")
    return f"docs/{page}"


def is_folder(path: str) -> bool:
    return (ROOT / path).is_dir()


def content(origin: str) -> str:
    """The Markdown of a page: the file itself, a listing of it, or the names of the files of a folder."""
    path = ROOT / origin
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if each.is_file())
        return f"{hidden(origin)}# {origin}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
    text = path.read_text(encoding="utf-8")
    if origin in PAGES or origin.startswith("docs/"):
        return text
    if path.suffix == ".md":
        return hidden(origin) + text
    language = LANGUAGES.get(path.suffix.removeprefix("."), "text")
    fence = "`" * 8
    return f"{hidden(origin)}# {origin}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def hidden(origin: str) -> str:
    """Front matter that keeps a page out of the search."""
    return f"---\ntitle: {origin}\nsearch:\n  exclude: true\n---\n\n"
