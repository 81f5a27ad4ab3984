"""Which checkpoints stay."""

import math
import operator
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.manifest import CheckpointId, Manifest, ancestry_after, current_line, newest
from mltrain.checkpoint.policies import Best, Budget, EveryNth, Latest, Named, Pinned, Younger, parse
from mltrain.checkpoint.retention import Context, Policy, best_of, by_metric, plan, protected
from tests.support.kept import CONTEXT, NOW, kept, of_epochs
from tests.support.runs import manifest_of

numbers = st.integers(1, 50)


amounts = st.integers(1, 10**9) | st.floats(1e-6, 1e9, allow_nan=False)


metric_names = st.text(max_size=6)


modes = st.sampled_from(["min", "max", None])


simple = (
    st.builds(Latest, numbers)
    | st.builds(Best, numbers, st.none() | metric_names, modes)
    | st.builds(EveryNth, epochs=numbers)
    | st.builds(EveryNth, steps=numbers)
    | st.builds(Younger, hours=amounts, days=amounts)
    | st.builds(Younger, days=amounts)
    | st.just(Pinned())
    | st.lists(st.text(max_size=6), max_size=3).map(lambda names: Named(tuple(names)))
)


policies: st.SearchStrategy[Policy] = st.recursive(
    simple,
    lambda inner: (
        st.builds(lambda a, b: a | b, inner, inner)
        | st.builds(lambda a, b: a & b, inner, inner)
        | st.builds(Budget, gigabytes=amounts, of=inner)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(policies)
def test_a_policy_is_what_its_text_says(policy: Policy) -> None:
    assert parse(str(policy)) == policy


@st.composite
def runs(draw: st.DrawFn) -> list[Manifest]:
    """Several attempts, each from somewhere; some of the checkpoints have gone already."""
    manifests: list[Manifest] = []
    for attempt in range(1, draw(st.integers(1, 4)) + 1):
        origin = draw(st.none() | st.sampled_from(manifests)) if manifests else None
        step = origin.step if origin is not None else 0
        for _ in range(draw(st.integers(0, 5))):
            step += draw(st.integers(1, 4))
            loss = draw(st.floats(0, 1) | st.sampled_from([math.nan, math.inf, -math.inf]))
            manifests.append(
                manifest_of(
                    step,
                    attempt,
                    draw(st.sampled_from(["epoch", "epoch", "step", "interrupted"])),
                    ancestry=ancestry_after(origin),
                    metrics={"val/loss": loss} if draw(st.booleans()) else {},
                    best=draw(st.integers(0, 9)) == 0,
                    size=draw(st.integers(1, 10**10)),
                    created=NOW - timedelta(hours=draw(st.integers(0, 100))),
                )
            )
    return sorted(
        [manifest for manifest in manifests if draw(st.integers(0, 5))], key=lambda manifest: manifest.id.order
    )


@st.composite
def contexts(draw: st.DrawFn, manifests: Sequence[Manifest]) -> Context:
    pins = dict.fromkeys(draw(some_of(manifests)), draw(st.text(max_size=3)))
    mode: Any = draw(st.sampled_from(["min", "max"]))
    return Context(NOW, pins, "val/loss", mode, next(iter(draw(some_of(manifests))), None))


def some_of(manifests: Sequence[Manifest]) -> st.SearchStrategy[list[CheckpointId]]:
    identities = [manifest.id for manifest in manifests]
    return st.lists(st.sampled_from(identities), max_size=2) if identities else st.just([])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_policy_what_is_protected_is_never_in_the_plan(data: st.DataObject) -> None:
    manifests = data.draw(runs(), label="manifests")
    context = data.draw(contexts(manifests), label="context")
    policy = data.draw(policies, label="policy")
    origin, used = next(iter(data.draw(some_of(manifests))), None), data.draw(some_of(manifests))
    reasons = protected(manifests, context, resumed_from=origin, in_use=used)
    removals = plan(manifests, policy, context, reasons)
    gone = [removal.manifest.id for removal in removals]

    assert not set(gone) & reasons.keys()
    assert len(gone) == len(set(gone)), "nothing is removed twice"
    assert set(gone) <= {manifest.id for manifest in manifests}
    stays = {*used, *context.pins, *([origin] if origin is not None else [])}
    head = newest(manifests)
    if head is not None:
        stays.add(head.id)
    best = best_of(current_line(manifests), context)
    if best is not None:
        stays.add(best.id)
    assert stays <= reasons.keys()
    on_line = {manifest.id for manifest in current_line(manifests)}
    interrupted = {manifest.id for manifest in manifests if manifest.kind == "interrupted"}
    rest = [m for m in current_line(manifests) if m.id not in interrupted or m.id in reasons]
    assert on_line - set(gone) == (policy.keep(rest, context) | reasons.keys()) & on_line
    assert all(removal.rule for removal in removals)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_second_clean_up_finds_nothing_more_to_do(data: st.DataObject) -> None:
    manifests = data.draw(runs())
    context = data.draw(contexts(manifests))
    policy = data.draw(st.builds(lambda a, b: a | b, st.builds(Latest, numbers), st.builds(Best, numbers)))
    keep = protected(manifests, context, resumed_from=None, in_use=())
    gone = {removal.manifest.id for removal in plan(manifests, policy, context, keep)}
    left = [manifest for manifest in manifests if manifest.id not in gone]
    assert plan(left, policy, context, protected(left, context, resumed_from=None, in_use=())) == []


@settings(max_examples=100, deadline=None)
@given(policies, policies, runs())
def test_either_keeps_what_any_keeps_and_both_what_all_keep(a: Policy, b: Policy, manifests: list[Manifest]) -> None:
    one, other = a.keep(manifests, CONTEXT), b.keep(manifests, CONTEXT)
    assert (a | b).keep(manifests, CONTEXT) == one | other
    assert (a & b).keep(manifests, CONTEXT) == one & other


@given(policies, policies, policies)
@settings(max_examples=50, deadline=None)
def test_joins_are_the_same_however_they_came_about(a: Policy, b: Policy, c: Policy) -> None:
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)


@pytest.mark.parametrize("other", [Best, 2, "Best(1)", None])
def test_only_policies_join(other: Any) -> None:
    for join in (operator.or_, operator.and_):
        for sides in ((Latest(2), other), (other, Latest(2))):
            with pytest.raises(TypeError, match="unsupported operand"):
                join(*sides)


def test_of_equal_ones_the_older_is_better() -> None:
    assert kept(Best(1), of_epochs(3, loss=[1, 0.5, 0.5])) == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_best(value: float) -> None:
    manifests = of_epochs(3, loss=[value, 0.5, value])
    assert [manifest.step for manifest in by_metric(manifests, "val/loss", "min")] == [2]
    assert [manifest.step for manifest in by_metric(manifests, "val/loss", "max")] == [2]
    assert best_of(of_epochs(1, loss=[value]), CONTEXT) is None


def test_what_was_declared_best_precedes_what_was_measured() -> None:
    manifests = [*of_epochs(2, loss=[0.1, 0.2]), manifest_of(3, best=True), manifest_of(4, metrics={"val/loss": 0.0})]
    assert kept(Best(1), manifests) == [3]
    assert kept(Best(2), manifests) == [3, 4]
    later = Context(NOW, declared=CheckpointId(attempt=1, step=4))
    assert kept(Best(1), manifests, later) == [4]
    nowhere = Context(NOW, declared=CheckpointId(attempt=9, step=9))
    assert kept(Best(1), manifests, nowhere) == [3]


def test_what_is_protected_may_exceed_a_budget() -> None:
    manifests = [manifest_of(step, size=10**10, metrics={"val/loss": float(step)}) for step in (1, 2, 3)]
    keep = protected(manifests, CONTEXT, resumed_from=None, in_use=())
    removals = plan(manifests, Budget(gigabytes=1, of=Latest(9)), CONTEXT, keep)
    assert [removal.manifest.step for removal in removals] == [2]
    assert keep == {manifests[0].id: "the best", manifests[2].id: "the newest"}


def test_an_interrupted_checkpoint_stays_until_a_later_commit_supersedes_it() -> None:
    manifests = [manifest_of(1), manifest_of(2), manifest_of(3, kind="interrupted")]
    keep = protected(manifests, CONTEXT, resumed_from=None, in_use=())
    assert [r.manifest.step for r in plan(manifests, Latest(1), CONTEXT, keep)] == [1]
    later = [*manifests, manifest_of(4, attempt=2, ancestry=[manifests[2].id])]
    keep = protected(later, CONTEXT, resumed_from=None, in_use=())
    removals = plan(later, Latest(9), CONTEXT, keep)
    assert [(r.manifest.step, r.rule) for r in removals] == [(3, "interrupted, and superseded by a later commit")]


def test_a_superseded_interruption_takes_no_place_of_an_epoch() -> None:
    manifests = [manifest_of(1), manifest_of(2), manifest_of(3, kind="interrupted"), manifest_of(4)]
    keep = protected(manifests, CONTEXT, resumed_from=None, in_use=())
    assert [r.manifest.step for r in plan(manifests, Latest(2), CONTEXT, keep)] == [3, 1]


def test_abandoned_lines_go_first() -> None:
    first = [manifest_of(step) for step in (1, 2, 3)]
    second = manifest_of(2, attempt=2, ancestry=[first[0].id])
    manifests = [*first, second]
    keep = protected(manifests, CONTEXT, resumed_from=None, in_use=[first[2].id])
    assert [(r.manifest.id, r.rule[:9]) for r in plan(manifests, Latest(9), CONTEXT, keep)] == [
        (first[1].id, "abandoned")
    ]


def test_what_an_attempt_resumed_from_stays_while_it_has_nothing_of_its_own() -> None:
    manifests = of_epochs(4)
    keep = protected(manifests, CONTEXT, resumed_from=manifests[0].id, in_use=())
    assert 1 not in [r.manifest.step for r in plan(manifests, Latest(1), CONTEXT, keep)]
    assert keep[manifests[0].id] == "resumed from"
