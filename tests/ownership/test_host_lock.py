"""A free lock of this host proves its holder ended."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mltrain.errors import RunHeld
from mltrain.ownership import liveness
from mltrain.ownership.host_lock import has_ended, take_lock
from mltrain.ownership.run_folder import home_of
from mltrain.tracking.client import TrackingClient

RUN = "a" * 32
HOLDING = """
import json, sys
from pathlib import Path
from mltrain.ownership import liveness
from mltrain.ownership.host_lock import take_lock
lock = take_lock(Path(sys.argv[1]), "a" * 32, take_over=False)
print(json.dumps(liveness.own()), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingClient:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return TrackingClient("http://127.0.0.1:1", None)


def elsewhere(who: dict[str, Any]) -> dict[str, Any]:
    return {**who, "boot": "another"}


def test_a_lock_that_is_free_proves_that_its_last_holder_has_ended(server: TrackingClient) -> None:
    home = home_of(server, RUN)
    words = [sys.executable, "-c", HOLDING, str(home)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout is not None
        who = json.loads(holding.stdout.readline())
        assert not has_ended(server, RUN, who)
        with pytest.raises(RunHeld, match=f"process {holding.pid}"):
            take_lock(home, RUN, take_over=False)
        holding.kill()
    assert has_ended(server, RUN, who)
    assert not has_ended(server, RUN, elsewhere(who))  # that one wrote from another home


def test_a_home_that_nobody_wrote_from_proves_nothing(server: TrackingClient) -> None:
    assert not has_ended(server, RUN, liveness.own())
    home_of(server, RUN)
    assert not has_ended(server, RUN, liveness.own())
    assert not has_ended(server, RUN, {})


def test_what_earlier_versions_recorded_in_a_home_proves_nothing(server: TrackingClient) -> None:
    (home_of(server, RUN) / "holder.json").write_text(json.dumps({"host": "here", "pid": 1}))
    assert not has_ended(server, RUN, {"host": "here", "pid": 1, "attempt": 1, "boot": "", "born": 1.0})
    (home_of(server, RUN) / "holder.json").write_text("[]")
    assert not has_ended(server, RUN, {})
