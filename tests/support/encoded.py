"""The files of a small state."""

from collections.abc import Mapping
from typing import Any

import torch

from mltrain.checkpoint.codec import encode
from tests.support.runs import snapshot_of


def files_of(state: Mapping[str, Any], **options: Any) -> dict[str, bytes]:
    encoded = encode(snapshot_of(state), **options)
    return {file.name: b"".join(bytes(piece) for piece in file.content) for file in encoded.files}


def small_state() -> dict[str, Any]:
    return {
        "model": {"w": torch.arange(6.0).view(2, 3)},
        "optimizer": {"m": torch.ones(2, dtype=torch.float64)},
        "n": 1,
    }
