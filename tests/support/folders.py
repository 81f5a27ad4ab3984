"""Folders of artifacts: what they hold, and names that may not reach them."""

from pathlib import Path

NAME = "step-000000001-a01"
HOSTILE = [
    *("", ".", "..", "../x", "x/..", "x/../y", "/x", "//x", "x//y", "x/", "/", "./x", "x/./y", "\\x", "x\\..\\y"),
    *("C:\\x", "C:/x", "x\0y", "x\ny", "x\n", "\x1b[31m", ".hidden", "x/.hidden", "~/x", "-rf", "x/-rf", " x", "x\t"),
    *("%2e%2e/x", "x%2fy", "x%00", "a%2f..%2fb", "file:///etc", "http://x", "x?y", "x*", "x|y", "x;y", "$HOME", "`id`"),
    *("x" * 201, "ä", "１", "x\u202ey", "\ud800", "x\x7f", "<b>", 'x"', "x'"),
]


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def flip(file: Path) -> None:
    """Change the last bit of a file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def file_in(folder: Path, name: str = "a.json", content: bytes = b"content") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name
