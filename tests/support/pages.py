"""The documentation's blocks, executed with what the reader has."""

import re
import shlex
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the commands of a page's bash and crontab blocks.

    Continued lines are joined and comments left out; of a script, which begins with ``#!``, there are the first two lines.
    """
    found: list[str] = []
    blocks_of_both = re.findall(r"```(bash|cron)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for language, block in blocks_of_both:
        if block.startswith("#!"):
            found.append("\n".join(block.splitlines()[:2]))
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            found += [shlex.join(words[5:] if language == "cron" else words)] if words else []
    return found


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
