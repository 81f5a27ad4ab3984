"""Which checkpoints are on the current line.

A run can be rolled back: from step 600 to 300, and killed at 420, its newest state is 420. The line of a checkpoint is
the chain of commits that led to it; what is off the newest one's line is abandoned.
"""

from collections.abc import Iterable, Sequence

from mltrain.checkpoint.manifest import CheckpointId, Manifest


def newest(manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the newest commit of the newest attempt, or ``None``."""
    return max(manifests, key=lambda manifest: manifest.id.order, default=None)


def line_of(head: Manifest, manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return the checkpoints on the line that ends in ``head``, oldest first, ``head`` included."""
    # An attempt may load one of its own checkpoints and go on: then it stands in the ancestry too, and its end counts.
    ends = {point.attempt: point.step for point in head.ancestry} | {head.id.attempt: head.step}
    on_line = [m for m in manifests if m.id.attempt in ends and m.step <= ends[m.id.attempt]]
    return sorted(on_line, key=lambda manifest: manifest.id.order)


def current_line(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the checkpoints on the current line, oldest first."""
    head = newest(manifests)
    return line_of(head, manifests) if head is not None else []


def ancestry_after(resumed_from: Manifest | None) -> tuple[CheckpointId, ...]:
    """Return the ancestry of the commits of an attempt that continues from a checkpoint."""
    return (*resumed_from.ancestry, resumed_from.id) if resumed_from is not None else ()
