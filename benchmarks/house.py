"""Measures size and structure of the package: lines, imports, cycles, large files, classes, constructors.

python benchmarks/house.py [FOLDER] [--json]

FOLDER is that of the package, ``mltrain`` by default. A room is a folder of the package; modules at its top level are one room.
Lines of code are those that are neither blank nor a comment nor in a docstring.
"""

import argparse
import ast
import itertools
import json
from pathlib import Path
from typing import Any

LINES, CODE, ARGUMENTS = 300, 150, 8


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return found & known


def wide(tree: ast.Module) -> list[tuple[str, int]]:
    """Return (class, number) for constructors of over eight arguments."""
    found = []
    for owner in ast.walk(tree):
        for node in owner.body if isinstance(owner, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
                if count > ARGUMENTS:
                    found.append((owner.name, count))
    return found


def code_lines(node: ast.AST, text: list[str]) -> set[int]:
    """Return the numbers of the lines that hold code. Blank lines, comments and docstrings do not count."""
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", len(text))
    found = {at for at in range(first, last + 1) if text[at - 1].strip() and not text[at - 1].lstrip().startswith("#")}
    for part in ast.walk(node):
        body = getattr(part, "body", None)
        for one in body if isinstance(body, list) else ():
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                found -= set(range(one.lineno, one.end_lineno + 1))
    return found


def large(tree: ast.Module, text: list[str]) -> list[tuple[str, int]]:
    """Return (class, lines) for classes of over :data:`CODE` lines."""
    sizes = [(node.name, len(code_lines(node, text))) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [(owner, size) for owner, size in sizes if size > CODE]


def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    """Return everything that ``start`` imports, directly or not."""
    found: set[str] = set()
    waiting = set(edges[start])
    while waiting:
        found |= waiting
        waiting = set().union(*(edges[one] for one in waiting)) - found
    return found


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups that import each other, directly or not."""
    reach = {one: reached(one, edges) for one in edges}
    groups = {tuple(sorted(other for other in reach[one] if one in reach[other])) for one in edges}
    return sorted(list(group) for group in groups if len(group) > 1)


def house(folder: Path) -> dict[str, Any]:
    """Measure the package in a folder."""
    name = folder.name
    files = {
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
    }
    texts = {module: path.read_text(encoding="utf-8") for module, path in files.items()}
    trees = {module: ast.parse(text) for module, text in texts.items()}
    lines = {module: len(text.splitlines()) for module, text in texts.items()}
    known = set(files)
    facade = {name}  # names what is public, and imports it when it is used
    edges = {module: imports(tree, known) - {module} - facade for module, tree in trees.items() if module not in facade}
    rooms = {
        module: path.relative_to(folder).parts[0] if path.parent != folder else "." for module, path in files.items()
    }
    between = {room: set() for room in set(rooms.values())}  # type: dict[str, set[str]]
    crossing = 0
    for module, targets in edges.items():
        for target in targets:
            if rooms[module] != rooms[target]:
                crossing += 1
                between[rooms[module]].add(rooms[target])
    mutual = [
        [one, other]
        for one, other in itertools.combinations(sorted(between), 2)
        if one in between[other] and other in between[one] and "." not in (one, other)
    ]
    return {
        "lines": sum(lines.values()),
        "lines of code": sum(len(code_lines(trees[module], text.splitlines())) for module, text in texts.items()),
        "modules": len(files),
        "modules at the top": sum(room == "." for room in rooms.values()) - 1,
        "imports between modules": sum(map(len, edges.values())),
        "imports between rooms": crossing,
        "pairs of rooms that import each other": mutual,
        "cycles of modules": cycles(edges),
        f"files over {LINES} lines": {module: count for module, count in lines.items() if count > LINES},
        f"classes over {CODE} lines of code": {
            f"{module}.{owner}": size
            for module, tree in trees.items()
            for owner, size in large(tree, texts[module].splitlines())
        },
        f"constructors over {ARGUMENTS} arguments": {
            f"{module}.{owner}": count for module, tree in trees.items() for owner, count in wide(tree)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("mltrain"))
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    found = house(given.folder.resolve())
    if given.json:
        print(json.dumps(found, indent=1))
        return
    for what, value in found.items():
        print(f"{what:40} {len(value) if isinstance(value, (dict, list)) else value}")
        if isinstance(value, dict):
            for name, count in sorted(value.items(), key=lambda item: -item[1]):
                print(f"    {name:50} {count}")
        elif isinstance(value, list):
            for group in value:
                print(f"    {' <-> '.join(group)}")


if __name__ == "__main__":
    main()
