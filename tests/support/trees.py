"""Encodes and decodes a state without a file."""

import json
from typing import Any

from mltrain.checkpoint.pytree import flatten, unflatten


def there_and_back(state: dict[Any, Any], weights: str | None = None) -> Any:
    flat = flatten(state, weights)
    return unflatten(json.loads(json.dumps(flat.tree, allow_nan=False)), flat.tensors)
