"""What the lock in a run's home proves about the process that held the run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mltrain import process
from mltrain.errors import RunHeld
from mltrain.tracking.home import home_of, locked, was_left
from mltrain.tracking.server import Server

RUN = "a" * 32
HOLDING = """
import json, sys
from pathlib import Path
from mltrain import process
from mltrain.tracking.home import locked
lock = locked(Path(sys.argv[1]), "a" * 32, take_over=False)
print(json.dumps(process.own()), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return Server("http://127.0.0.1:1", None)


def elsewhere(who: dict[str, Any]) -> dict[str, Any]:
    return {**who, "boot": "another"}


def test_a_lock_that_is_free_proves_that_its_last_holder_has_ended(server: Server) -> None:
    home = home_of(server, RUN)
    words = [sys.executable, "-c", HOLDING, str(home)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout is not None
        who = json.loads(holding.stdout.readline())
        assert not was_left(server, RUN, who)
        with pytest.raises(RunHeld, match=f"process {holding.pid}"):
            locked(home, RUN, take_over=False)
        holding.kill()
    assert was_left(server, RUN, who)
    assert not was_left(server, RUN, elsewhere(who))  # that one wrote from another home


def test_a_home_that_nobody_wrote_from_proves_nothing(server: Server) -> None:
    assert not was_left(server, RUN, process.own())
    home_of(server, RUN)
    assert not was_left(server, RUN, process.own())
    assert not was_left(server, RUN, {})


def test_what_earlier_versions_recorded_in_a_home_proves_nothing(server: Server) -> None:
    (home_of(server, RUN) / "holder.json").write_text(json.dumps({"host": "here", "pid": 1}))
    assert not was_left(server, RUN, {"host": "here", "pid": 1, "attempt": 1, "boot": "", "born": 1.0})
    (home_of(server, RUN) / "holder.json").write_text("[]")
    assert not was_left(server, RUN, {})
