"""Makes the site of these pages: the README is its first page, and files beside the pages are named instead of linked.

mkdocs calls it; see mkdocs.yml.
"""

import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's text with the links of the site."""
    if page.file.src_uri == "index.md":
        return _of_readme((_ROOT / "README.md").read_text(encoding="utf-8"))
    return _LINK.sub(_named, markdown)


def _of_readme(text: str) -> str:
    """Return the README with links to the site's pages."""

    def led(match: re.Match[str]) -> str:
        inside = match[2].startswith("docs/")
        return f"[{match[1]}]({match[2].removeprefix('docs/')})" if inside else _named(match)

    return _LINK.sub(led, text)


def _named(match: re.Match[str]) -> str:
    """Return a link, or only its text outside the pages."""
    text, target = match[1], match[2]
    if target.startswith("../README.md"):
        return f"[{text}](index.md{target.removeprefix('../README.md')})"
    outside = "://" not in target and not target.startswith("#") and not target.partition("#")[0].endswith(".md")
    return text if outside or target.startswith("../") else match[0]
