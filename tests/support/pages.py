"""The blocks of the documentation, executed with what the reader has."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of a page in a language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def execute(page: str, number: int, names: dict[str, Any], **words: str) -> dict[str, Any]:
    """Execute a block of Python of a page.

    Args:
        page: its name, without ``.md``.
        number: of the block on the page.
        names: what the reader has defined before; those that the block defines are added.
        words: texts of the block that stand for something else, such as ``RUN_ID``.

    Returns:
        ``names``.
    """
    block = blocks(DOCS / f"{page}.md", "python")[number]
    for word, meaning in words.items():
        assert word in block, f"{page}: {word} is not in block {number}"
        block = block.replace(word, meaning)
    exec(compile(block, f"{page}.md", "exec"), names)
    return names
