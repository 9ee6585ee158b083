"""The code of README.md and docs/plugins.md, for the tests that execute it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def blocks(language: str, containing: str = "") -> list[str]:
    """The fenced blocks of a language, those that contain a text where one is given."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", README + PLUGINS, flags=re.MULTILINE | re.DOTALL)
    return [block for block in found if containing in block]


def block(language: str, containing: str) -> str:
    """The one such block."""
    (found,) = blocks(language, containing)
    return found
