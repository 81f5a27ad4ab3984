"""Policies as text, and policies of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pytest

import mltrain
from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.policies import GROUP, Budget, Latest, parse
from mltrain.checkpoint.retention import Context, Policy
from mltrain.errors import ConfigError
from tests.support.runs import FolderRun, epochs, train


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
