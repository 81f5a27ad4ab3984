"""The line of a checkpoint: the chain of commits that led to it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.manifest import (
    CheckpointId,
    Manifest,
    ancestry_after,
    current_line,
    line_of,
    newest,
)
from tests.support.runs import manifest_of


def commits(attempt: int, steps: list[int], origin: Manifest | None = None) -> list[Manifest]:
    """Return the commits of an attempt that continues from ``origin``."""
    made: list[Manifest] = []
    for step in steps:
        parent = made[-1].id if made else origin.id if origin is not None else None
        made.append(manifest_of(step, attempt, parent=parent, ancestry=ancestry_after(origin)))
    return made


def names(manifests: list[Manifest]) -> list[str]:
    return [f"{manifest.id.attempt}:{manifest.step}" for manifest in manifests]


def chain(head: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    """Return the chain of parents, oldest first: the meaning of a line while nothing has been pruned."""
    known = {manifest.id: manifest for manifest in manifests}
    found = [head]
    while found[-1].parent is not None:
        found.append(known[found[-1].parent])
    return found[::-1]


def test_nothing_has_no_line() -> None:
    assert newest([]) is None
    assert current_line([]) == []


def test_after_a_rollback_and_a_kill_the_newest_is_of_the_newest_attempt() -> None:
    first = commits(1, [100, 200, 300, 400, 500, 600])
    second = commits(2, [360, 420], origin=first[2])
    assert names(current_line([*first, *second])) == ["1:100", "1:200", "1:300", "2:360", "2:420"]


def test_a_rollback_without_a_commit_abandons_nothing_yet() -> None:
    first = commits(1, [100, 200, 300])
    assert names(current_line(first)) == ["1:100", "1:200", "1:300"]


def test_an_attempt_from_an_abandoned_checkpoint_takes_its_line_up_again() -> None:
    first = commits(1, [100, 200, 300])
    second = commits(2, [150], origin=first[0])
    third = commits(3, [400], origin=first[2])
    assert names(current_line([*first, *second, *third])) == ["1:100", "1:200", "1:300", "3:400"]


def test_the_line_stays_known_when_its_middle_has_been_pruned() -> None:
    first = commits(1, [100, 200, 300])
    second = commits(2, [250], origin=first[1])
    third = commits(3, [400, 500], origin=second[0])
    kept = [first[0], first[2], *third]
    assert names(current_line(kept)) == ["1:100", "3:400", "3:500"]


def test_an_attempt_that_starts_from_nothing_has_a_line_of_its_own() -> None:
    assert names(current_line([*commits(1, [100, 200]), *commits(2, [50])])) == ["2:50"]


def test_a_loop_that_loads_one_of_its_own_checkpoints_and_goes_on_stays_on_its_line() -> None:
    first = commits(1, [1, 2, 3, 4])
    after = commits(1, [5, 6], origin=first[2])
    assert names(current_line([*first, *after]))[-3:] == ["1:4", "1:5", "1:6"]
    second = commits(2, [7], origin=after[1])
    assert names(current_line([*first, *after, *second]))[-3:] == ["1:5", "1:6", "2:7"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_line_of_any_checkpoint_is_its_chain_of_parents(data: st.DataObject) -> None:
    manifests: list[Manifest] = []
    for attempt in range(1, data.draw(st.integers(1, 6), label="attempts") + 1):
        origin = data.draw(st.none() | st.sampled_from(manifests), label="resumed from") if manifests else None
        begin = origin.step if origin is not None else 0
        steps = data.draw(st.lists(st.integers(1, 5), max_size=4), label="steps between commits")
        manifests += commits(attempt, [begin + sum(steps[: n + 1]) for n in range(len(steps))], origin)
    for head in manifests:
        assert names(line_of(head, manifests)) == names(chain(head, manifests))
    if manifests:
        assert current_line(manifests)[-1] == max(manifests, key=lambda manifest: manifest.id.order)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)))))
)
def test_whatever_a_manifest_claims_of_its_past_the_newest_is_on_the_current_line(
    claims: list[tuple[int, int, list[tuple[int, int]]]],
) -> None:
    manifests = [
        manifest_of(step, attempt, ancestry=[CheckpointId(attempt=a, step=s) for a, s in ancestry])
        for attempt, step, ancestry in claims
    ]
    head = newest(manifests)
    assert head is None or head in current_line(manifests)
