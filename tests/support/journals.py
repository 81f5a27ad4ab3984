"""What waits in a journal."""

from mltrain.delivery.journal import Journal


def points(journal: Journal, **options: int) -> list[tuple[str, int, float, int]]:
    return [(p.key, p.step, p.value, p.timestamp) for p in journal.unsent_points(**options)]
