"""Tool wear from sensor signals: a recurrent network, readers of recordings, and a generator of synthetic ones."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projects.tool_wear.classifier import ToolWearClassifier as ToolWearClassifier
    from projects.tool_wear.keeper import Position as Position

__all__ = ["Position", "ToolWearClassifier"]


def __getattr__(name: str) -> Any:
    """Import the classifier on first use: the generator needs no scikit-learn."""
    if name not in __all__:
        raise AttributeError(f"module 'projects.tool_wear' has no attribute {name!r}")
    from projects.tool_wear import classifier

    return getattr(classifier, name)
