"""The modules of this repository as syntax trees: what they import and what they call."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def source(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported(file: Path, *, anywhere: bool = True) -> Iterator[str]:
    """Yield the full names of all imports. ``anywhere``: inside of functions too."""
    nodes = ast.walk(source(file)) if anywhere else iter(source(file).body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)} imports relatively"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with its name: ``os.rename`` or ``….unlink``."""
    for node in ast.walk(source(file)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                yield function.id, node
            elif isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else "…"
                yield f"{owner}.{function.attr}", node


def modules() -> dict[str, Path]:
    return {
        name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in files("mltrain")
    }
