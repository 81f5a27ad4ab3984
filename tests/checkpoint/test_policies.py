"""Policies as text, and policies of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from typing import Any

import pytest

import mltrain
from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.policies import GROUP, Best, Budget, EveryNth, Latest, Named, Pinned, Younger, parse
from mltrain.checkpoint.retention import Context, Policy
from mltrain.errors import ConfigError
from tests.support.kept import NOW, kept, of_epochs
from tests.support.runs import FolderRun, epochs, manifest_of, train


@dataclass(frozen=True)
class OnePerTen(Policy):
    """As a user writes one: a frozen dataclass with one method."""

    offset: int = 0

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset(manifest.id for manifest in manifests if manifest.epoch % 10 == self.offset)


class Bare:
    """What has ``keep`` joins with a policy from either side."""

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        return frozenset()


@pytest.mark.parametrize(
    "policy",
    [
        OnePerTen(),
        OnePerTen(3),
        OnePerTen() | Latest(2),
        Latest(2) | OnePerTen(1),
        Latest(2) & OnePerTen(1),
        (OnePerTen() | Latest(2)) & OnePerTen(4),
        Budget(gigabytes=1, of=OnePerTen(2) | Latest(1)),
    ],
    ids=str,
)
def test_a_policy_of_ones_own_is_read_back_from_its_text(policy: Policy) -> None:
    assert parse(str(policy)) == policy


def test_the_text_of_a_policy_names_what_is_not_its_default() -> None:
    assert [str(OnePerTen()), str(OnePerTen(3))] == ["OnePerTen()", "OnePerTen(offset=3)"]


def test_anything_that_keeps_joins_from_either_side() -> None:
    left: Any = Bare() | Latest(2)  # type: ignore[operator]
    assert left.keep([], None) == (Latest(2) | Bare()).keep([], None) == frozenset()  # type: ignore[arg-type,operator]
    assert (Bare() & Latest(2)).policies[1] == Latest(2)  # type: ignore[operator]


def test_a_loop_prunes_by_a_policy_of_ones_own_and_records_it(run: FolderRun) -> None:
    with run.manager(policy=OnePerTen(2) | Latest(1)) as manager:
        train(manager, 1, 4)
        assert epochs(manager) == [2, 4]
    assert run.tags["mltrain.retention"] == "OnePerTen(offset=2) | Latest(1)"


def test_a_package_registers_a_policy_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Policy.known, "OnePerTen")  # as in a process that did not import the user's code
    with pytest.raises(ConfigError, match="there is no policy OnePerTen"):
        parse("OnePerTen(3)")
    entry = metadata.EntryPoint("OnePerTen", f"{__name__}:OnePerTen", GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints([entry]))
    assert parse("Latest(1) | OnePerTen(3)") == Latest(1) | OnePerTen(3)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (f"{__name__}:Gone", "cannot be imported: AttributeError: "),
        ("no.such.module:OnePerTen", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (f"{__name__}:parse", "is not a subclass of mltrain.Policy: <function parse"),
    ],
)
def test_an_entry_point_that_is_no_policy_is_named_with_its_problem(
    value: str, problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = metadata.EntryPoint("Broken", value, GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints([entry]))
    with pytest.raises(ConfigError, match="there is no policy Broken"):
        parse("Latest(1) | Broken(3)")
    assert caplog.messages[0].startswith(f"The entry point {value} in mltrain.policies {problem}")


def test_a_policy_of_ones_own_does_not_take_the_name_of_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    type("Latest", (OnePerTen,), {})
    assert parse("Latest(3)") == Latest(3)


def test_a_new_policy_needs_its_class_and_its_test_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from mltrain.checkpoint import policies

    monkeypatch.setattr(policies, "OnePerTen", OnePerTen, raising=False)  # as if it stood there
    monkeypatch.setattr(policies, "__all__", [*policies.__all__, "OnePerTen"])
    assert mltrain.OnePerTen is OnePerTen  # type: ignore[attr-defined]
    assert "OnePerTen" in mltrain.__all__
    assert isinstance(parse("OnePerTen()"), OnePerTen)
    with pytest.raises(ConfigError, match=r"Known: .*OnePerTen\(…\)"):
        parse("Newest(1)")


def test_latest_keeps_the_newest() -> None:
    assert kept(Latest(2), of_epochs(5)) == [4, 5]
    assert kept(Latest(9), of_epochs(2)) == [1, 2]


def test_an_interruption_takes_no_place_of_an_epoch() -> None:
    assert kept(Latest(2), [*of_epochs(3), manifest_of(4, kind="interrupted")]) == [2, 3]


def test_best_keeps_the_best_by_its_metric_and_mode() -> None:
    manifests = of_epochs(4, iou=[0.1, 0.4, 0.3, 0.2], loss=[4, 3, 2, 1])
    assert kept(Best(2, "val/iou", "max"), manifests) == [2, 3]
    assert kept(Best(1, "val/iou", "min"), manifests) == [1]
    assert kept(Best(1), manifests) == [4]
    assert kept(Best(1, "val/other"), manifests) == []


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
    manifests = of_epochs(4)
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


WRONG = {
    "": "invalid syntax",
    "Latest(": "invalid syntax",
    "Latest(0)": "at least 1",
    "Latest(1.5)": "whole number",
    "Latest(True)": "whole number",
    "Latest('3')": "whole number",
    "Latest(-1)": "expected a policy",
    "Latest(1, 2, 3)": "Latest",
    "Latest(number=3)": "unexpected keyword",
    "Latest(*[1])": "expected a policy",
    "Latest(**{'count': 1})": "expected a policy",
    "Latest(**3)": "unexpected keyword",
    "Latest": "expected a policy",
    "Newest(3)": "there is no policy Newest",
    "3": "expected a policy",
    "'Latest(3)'": "expected a policy",
    "Latest(1) | 3": "both sides",
    "Latest(1) + Best(1)": "expected a policy",
    "Latest(1) or Best(1)": "expected a policy",
    "not Latest(1)": "expected a policy",
    "Best(1, 3)": "name of a metric",
    "Best('val/loss')": "whole number",
    "Best(1, 'val/loss', 'best')": "'min' or 'max'",
    "EveryNth()": "either epochs or steps",
    "EveryNth(epochs=1, steps=1)": "either epochs or steps",
    "EveryNth(3)": "positional",
    "Younger()": "positive",
    "Younger(hours=-1)": "expected a policy",
    "Younger(hours='6')": "positive",
    "Younger(hours=True)": "positive",
    "Younger(hours=1e999)": "positive",
    "Named(3)": "names",
    "Budget(gigabytes=1)": "of",
    "Budget(gigabytes='1', of=Latest(1))": "positive",
    "Budget(gigabytes=1, of=3)": "expected a policy",
    "Budget(gigabytes=0, of=Latest(1))": "positive",
    "Budget(gigabytes=1e999, of=Latest(1))": "positive",
    "__import__('os').system('true')": "expected a policy",
    "().__class__": "expected a policy",
    "(lambda: Latest(1))()": "expected a policy",
    "[Latest(1) for _ in range(3)][0]": "expected a policy",
    "f'{Latest(1)}'": "expected a policy",
    "Latest(10**10**10)": "expected a policy",
    "Latest(1); Latest(2)": "invalid syntax",
    "keep = Latest(1)": "invalid syntax",
    "Latest(1)\0": "invalid syntax",
    "(" * 5000 + ")" * 5000: "invalid syntax",
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
