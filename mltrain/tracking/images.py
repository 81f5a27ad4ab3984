"""Pictures as the MLflow UI wants them, figures, and the note of a run."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mltrain.errors import UsageError

PREVIEW_PIXELS = 512
_UI_NAME = re.compile(r"(.+)\+step\+(\d+)\+timestamp\+\d+\+[0-9a-f-]{36}\.png", re.ASCII)
_WORD = r"[A-Za-z0-9_][A-Za-z0-9_. -]*"
_KEY = re.compile(rf"(?=.{{1,100}}$){_WORD}(/{_WORD})*", re.ASCII)  # so that its files are artifacts with valid names


def as_image(picture: Any) -> Any:
    """Return a PIL image of a PIL image, a uint8 array of shape (H, W) or (H, W, 3), or a matplotlib figure.

    Raises:
        UsageError: it is none of these.
    """
    from PIL import Image

    if isinstance(picture, Image.Image):
        return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")
    if hasattr(picture, "savefig"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(picture)
        canvas.draw()  # type: ignore[no-untyped-call]
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    shape = tuple(getattr(picture, "shape", ()))
    if str(getattr(picture, "dtype", "")) == "uint8" and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        return Image.fromarray(picture)
    raise UsageError(
        f"A picture is a PIL image, a matplotlib figure or a uint8 array of shape (H, W) or (H, W, 3); a "
        f"{type(picture).__name__} of shape {shape} came."
    )


def ui_stem(name: str, step: int, timestamp: int, identifier: object) -> str:
    """Return the file name, without its ending, by which the UI finds a step-indexed picture.

    It is the one that ``MlflowClient.log_image`` makes (MLflow 3.17); made here, so that sending twice makes one file.
    """
    if not _KEY.fullmatch(name):
        raise UsageError(
            f"{name!r:.80} cannot name a picture: up to 100 letters, digits, blanks and _ - . / were expected."
        )
    return f"{name.replace('/', '~')}+step+{step}+timestamp+{timestamp}+{identifier}"


def ui_identity(file_name: str) -> tuple[str, int] | None:
    """Return name and step of a step-indexed picture from its file's name, or none."""
    match = _UI_NAME.fullmatch(file_name)
    return (match[1].replace("~", "/"), int(match[2])) if match else None


def save_for_ui(image: Any, folder: Path, stem: str) -> list[Path]:
    """Write a picture and the smaller preview that the UI shows first; return both paths."""
    full, small = folder / f"{stem}.png", folder / f"{stem}+compressed.webp"
    image.save(full)
    preview = image.copy()
    preview.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    preview.save(small)
    return [full, small]


def note(project: str, run_id: str, best: str | None, attempts: Iterable[Any]) -> str:
    """Return the description of a run in Markdown: what it is, how to resume it, what changed on the way."""
    lines = [f"Training of `{_plain(project)}` by mltrain."]
    if best:
        lines.append(f"Best so far: {_plain(best)}.")
    lines += ["", "```", f"mltrain train --resume-run {run_id}", f"mltrain evaluate {run_id}", "```"]
    for attempt in attempts:
        if attempt.resumed_from or attempt.changed:
            origin = _plain(attempt.resumed_from or "the start")
            lines.append(f"* Attempt {attempt.ordinal} continued from {origin}{_changes(attempt.changed)}")
    return "\n".join(lines)


def _changes(changed: Mapping[str, Iterable[str]]) -> str:
    if not changed:
        return "."
    listed = ", ".join(f"{_plain(key)} {_plain(before)} → {_plain(now)}" for key, (before, now) in changed.items())
    return f" with {listed}."


def _plain(text: str) -> str:
    """Return text without what Markdown, HTML or a terminal could take for a command."""
    return re.sub(r"[<>`*\[\]\x00-\x1f\x7f-\x9f]", "", str(text))[:300]
