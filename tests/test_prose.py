"""Plain English in the package, its pages and its projects: no phrase of the former dialect comes back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORBIDDEN = re.compile(
    r"\b(?:is|are|was|were|be) (?:said|told)\b(?! (?:to|apart|from)\b)"  # logged, raised, printed, recorded
    r"|(?<![`\w])none: "  # If ``None``, …
    r"|(?-i:(?<=, )or none\b(?! of)|\bnone (?:if|when|where) (?:there|none|it|nothing)\b)"  # or ``None``
    r"|\bwhoever\b|\bcourier\b(?!\.py)|\bdeeds?\b|\bfate\b|\bin vain\b|\bgone on with\b"
    r"|\bwhat cannot be meant\b|\ba smaller improvement is none\b",
    re.IGNORECASE,
)


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the prose of a file with its lines: pages as they are, and of modules all strings and comments."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield from enumerate(content.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for number, line in enumerate(content.splitlines(), 1):
        if "#" in line:
            yield number, line.partition("#")[2]


def files() -> list[Path]:
    modules = [file for folder in ("mltrain", "projects") for file in (ROOT / folder).rglob("*.py")]
    return [*modules, *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_the_former_dialect_stays_away() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match.group(0)}"
        for file in files()
        for number, text in texts(file)
        for match in FORBIDDEN.finditer(text)
    ]
    assert found == []
