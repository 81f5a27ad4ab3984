"""Plain English in the package, its pages, projects and tests: no phrase of the former dialect comes back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = re.compile(
    r"\b(?:is|are|was|were|be) (?:said|told)\b(?! (?:to|apart|from)\b)"  # logged, raised, printed, recorded
    r"|(?<![`\w])none: "  # If ``None``, …
    r"|(?-i:(?<=, )or none\b(?! of)|\bnone (?:if|when|where) (?:there|none|it|nothing)\b)"  # or ``None``
    r"|\bwhoever\b|\bcourier\b(?!\.py)|\bdeeds?\b|\bfate\b|\bin vain\b|\bgone on with\b"
    r"|\bwhat cannot be meant\b|\ba smaller improvement is none\b",
    re.IGNORECASE,
)

SHORT = ("mltrain", "projects", "benchmarks", "tests", "docs", ".ci")
"""Folders whose docstrings begin with a sentence of at most ten words."""


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the prose of a file with its lines: pages as they are, and of modules all strings, comments and names."""
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield from enumerate(content.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        yield from ((getattr(node, "lineno", 0), spaced) for spaced in named(node))
    for number, line in enumerate(content.splitlines(), 1):
        if "#" in line:
            yield number, line.partition("#")[2]


def named(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node defines or uses. Names of functions, classes, arguments, variables and attributes, as
    words.
    """
    for field in ("name", "id", "arg", "attr"):
        name = getattr(node, field, None)
        if isinstance(name, str):
            yield name.replace("_", " ").strip()


def files() -> list[Path]:
    modules = [file for folder in ("mltrain", "projects", "tests") for file in (ROOT / folder).rglob("*.py")]
    modules.remove(Path(__file__))  # it spells the phrases that it forbids
    return [*modules, *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_names_and_comments_are_read(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def test_it_is_said(courier):\n    courier.in_vain = 1  # for whoever asks\n")
    assert sorted({match.group(0) for _, text in texts(file) for match in FORBIDDEN.finditer(text)}) == [
        "courier",
        "in vain",
        "is said",
        "whoever",
    ]


def test_the_former_dialect_stays_away() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match.group(0)}"
        for file in files()
        for number, text in texts(file)
        for match in FORBIDDEN.finditer(text)
    ]
    assert found == []


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a file with their lines."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def first_sentence(docstring: str) -> list[str]:
    """Return the words of the first sentence.

    Code in double backticks is one word; text in parentheses, such as shapes and sources, does not count.
    """
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    plain = re.sub(r"\s*\([^()]*\)", "", re.sub(r"``[^`]*``", "code", paragraph))
    return re.split(r"(?<=[.:;!?]) ", plain)[0].split()


@pytest.mark.parametrize(
    ("docstring", "words"),
    [
        ("Return the mean.", 3),
        ("Return the mean; raise for none.", 3),
        ("Return the mean. It is exact.", 3),
        ("Return the\nmean\n\nof all values.", 3),
        ("Return ``a + b if c else d``.", 2),
        ("Return the mean (shape N, by Welford).", 3),
        ("Return 0.5 for a.b() of all values.", 7),
    ],
)
def test_words_of_a_first_sentence_are_counted(docstring: str, words: int) -> None:
    assert len(first_sentence(docstring)) == words


def test_docstrings_begin_with_a_short_sentence() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {' '.join(words)}"
        for folder in SHORT
        for file in (ROOT / folder).rglob("*.py")
        for line, text in docstrings(file)
        if len(words := first_sentence(text)) > 10
    ]
    assert found == [], "at most ten words"
