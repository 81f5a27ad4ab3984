"""Batches of a loader."""

from typing import Any


def epoch_of(batches: Any) -> list[Any]:
    return list(iter(batches))
