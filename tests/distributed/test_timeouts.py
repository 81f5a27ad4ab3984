"""The timeout of waits comes from the environment."""

import pytest

from mltrain.distributed.timeouts import peer_seconds
from mltrain.errors import UsageError


def test_the_timeout_has_a_default_and_takes_numbers_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLTRAIN_PEER_SECONDS", raising=False)
    assert peer_seconds() == 1800.0
    monkeypatch.setenv("MLTRAIN_PEER_SECONDS", "2.5")
    assert peer_seconds() == 2.5


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "1e9"])
def test_any_other_timeout_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRAIN_PEER_SECONDS", given)
    with pytest.raises(UsageError, match="MLTRAIN_PEER_SECONDS is invalid"):
        peer_seconds()
