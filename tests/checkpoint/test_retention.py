"""Which checkpoints stay."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.manifest import CheckpointId, Manifest, ancestry_after, current_line, newest
from mltrain.checkpoint.policies import Best, Budget, EveryNth, Latest, Named, Pinned, Younger, parse
from mltrain.checkpoint.retention import Context, Policy, best_of, by_metric, plan, protected
from mltrain.errors import ConfigError
from tests.support.runs import manifest_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
CONTEXT = Context(NOW)


def steps(identities: Any) -> list[int]:
    return sorted(identity.step for identity in identities)


def kept(policy: Policy, manifests: Sequence[Manifest], context: Context = CONTEXT) -> list[int]:
    return steps(policy.keep(manifests, context))


def epochs(number: int, **metrics: Sequence[float]) -> list[Manifest]:
    return [
        manifest_of(step, metrics={f"val/{name}": values[step - 1] for name, values in metrics.items()})
        for step in range(1, number + 1)
    ]


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


def test_latest_keeps_the_newest() -> None:
    assert kept(Latest(2), epochs(5)) == [4, 5]
    assert kept(Latest(9), epochs(2)) == [1, 2]


def test_an_interruption_takes_no_place_of_an_epoch() -> None:
    assert kept(Latest(2), [*epochs(3), manifest_of(4, kind="interrupted")]) == [2, 3]


def test_best_keeps_the_best_by_its_metric_and_mode() -> None:
    manifests = epochs(4, iou=[0.1, 0.4, 0.3, 0.2], loss=[4, 3, 2, 1])
    assert kept(Best(2, "val/iou", "max"), manifests) == [2, 3]
    assert kept(Best(1, "val/iou", "min"), manifests) == [1]
    assert kept(Best(1), manifests) == [4]
    assert kept(Best(1, "val/other"), manifests) == []


def test_of_equal_ones_the_older_is_better() -> None:
    assert kept(Best(1), epochs(3, loss=[1, 0.5, 0.5])) == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_best(value: float) -> None:
    manifests = epochs(3, loss=[value, 0.5, value])
    assert [manifest.step for manifest in by_metric(manifests, "val/loss", "min")] == [2]
    assert [manifest.step for manifest in by_metric(manifests, "val/loss", "max")] == [2]
    assert best_of(epochs(1, loss=[value]), CONTEXT) is None


def test_what_was_declared_best_precedes_what_was_measured() -> None:
    manifests = [*epochs(2, loss=[0.1, 0.2]), manifest_of(3, best=True), manifest_of(4, metrics={"val/loss": 0.0})]
    assert kept(Best(1), manifests) == [3]
    assert kept(Best(2), manifests) == [3, 4]
    later = Context(NOW, declared=CheckpointId(attempt=1, step=4))
    assert kept(Best(1), manifests, later) == [4]
    nowhere = Context(NOW, declared=CheckpointId(attempt=9, step=9))
    assert kept(Best(1), manifests, nowhere) == [3]


def test_every_nth_keeps_multiples() -> None:
    manifests = [
        manifest_of(step, kind="epoch" if step % 10 == 0 else "step", epoch=step // 10) for step in range(5, 65, 5)
    ]
    assert kept(EveryNth(epochs=2), manifests) == [20, 40, 60]
    assert kept(EveryNth(steps=15), manifests) == [15, 30, 45, 60]


def test_younger_keeps_what_was_written_lately() -> None:
    manifests = [manifest_of(hours, created=NOW - timedelta(hours=hours)) for hours in (30, 6, 5, 1)]
    assert kept(Younger(hours=6), manifests) == [1, 5]
    assert kept(Younger(days=1), manifests) == [1, 5, 6]


def test_pinned_and_named_keep_what_is_pinned_and_named() -> None:
    manifests = epochs(4)
    context = Context(NOW, {manifests[1].id: "paper"})
    assert kept(Pinned(), manifests, context) == [2]
    assert kept(Named((manifests[0].name, manifests[3].name)), manifests) == [1, 4]
    assert kept(Pinned() & Latest(1), manifests, context) == []


def test_a_budget_drops_the_least_valuable_first() -> None:
    sizes = [manifest_of(step, size=10**9, metrics={"val/loss": float(abs(step - 2))}) for step in range(1, 7)]
    everything = Latest(100)
    assert kept(Budget(gigabytes=6, of=everything), sizes) == [1, 2, 3, 4, 5, 6]
    assert kept(Budget(gigabytes=4.5, of=everything), sizes) == [2, 4, 5, 6]
    assert kept(Budget(gigabytes=2, of=everything), sizes) == [2, 6]
    assert kept(Budget(gigabytes=1, of=everything), sizes) == [6]
    assert kept(Budget(gigabytes=0.5, of=everything), sizes) == []
    assert kept(Budget(gigabytes=9, of=Latest(2)), sizes) == [5, 6]


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
    manifests = epochs(4)
    keep = protected(manifests, CONTEXT, resumed_from=manifests[0].id, in_use=())
    assert 1 not in [r.manifest.step for r in plan(manifests, Latest(1), CONTEXT, keep)]
    assert keep[manifests[0].id] == "resumed from"


WRONG = {
    "": "not an expression",
    "Latest(": "not an expression",
    "Latest(0)": "at least 1",
    "Latest(1.5)": "whole number",
    "Latest(True)": "whole number",
    "Latest('3')": "whole number",
    "Latest(-1)": "policy was expected",
    "Latest(1, 2, 3)": "Latest",
    "Latest(number=3)": "unexpected keyword",
    "Latest(*[1])": "policy was expected",
    "Latest(**{'count': 1})": "policy was expected",
    "Latest(**3)": "unexpected keyword",
    "Latest": "policy was expected",
    "Newest(3)": "there is no policy Newest",
    "3": "a policy was expected",
    "'Latest(3)'": "a policy was expected",
    "Latest(1) | 3": "both sides",
    "Latest(1) + Best(1)": "policy was expected",
    "Latest(1) or Best(1)": "policy was expected",
    "not Latest(1)": "policy was expected",
    "Best(1, 3)": "name of a metric",
    "Best('val/loss')": "whole number",
    "Best(1, 'val/loss', 'best')": "'min' or 'max'",
    "EveryNth()": "either epochs or steps",
    "EveryNth(epochs=1, steps=1)": "either epochs or steps",
    "EveryNth(3)": "positional",
    "Younger()": "positive",
    "Younger(hours=-1)": "policy was expected",
    "Younger(hours='6')": "positive",
    "Younger(hours=True)": "positive",
    "Younger(hours=1e999)": "positive",
    "Named(3)": "names",
    "Budget(gigabytes=1)": "of",
    "Budget(gigabytes='1', of=Latest(1))": "positive",
    "Budget(gigabytes=1, of=3)": "policy was expected",
    "Budget(gigabytes=0, of=Latest(1))": "positive",
    "Budget(gigabytes=1e999, of=Latest(1))": "positive",
    "__import__('os').system('true')": "policy was expected",
    "().__class__": "policy was expected",
    "(lambda: Latest(1))()": "policy was expected",
    "[Latest(1) for _ in range(3)][0]": "policy was expected",
    "f'{Latest(1)}'": "policy was expected",
    "Latest(10**10**10)": "policy was expected",
    "Latest(1); Latest(2)": "not an expression",
    "keep = Latest(1)": "not an expression",
    "Latest(1)\0": "not an expression",
    "(" * 5000 + ")" * 5000: "not an expression",
    " | ".join(["Latest(1)"] * 20_000): "",
    "-" * 100_000 + "1": "",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30])
def test_what_is_no_policy_is_refused_and_nothing_is_run(text: str) -> None:
    with pytest.raises(ConfigError, match="The retention policy cannot be read") as caught:
        parse(text)
    assert WRONG[text] in str(caught.value)
    assert "Known: Latest(5)" in str(caught.value)


def test_the_message_points_at_the_word() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("Latest(3) | Bset(2)")
    _, shown, arrow, *_ = str(caught.value).splitlines()
    assert shown[arrow.index("^") :].startswith("Bset(2)")


@pytest.mark.parametrize("wrong", ["step-000000001-a01", ["step-000000001-a01"], (1,)])
def test_names_are_a_tuple_of_names(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="a tuple of names"):
        Named(wrong)
