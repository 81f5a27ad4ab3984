"""``mltrain watch`` from another terminal."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from mltrain.cli.watch import rendered, watch_
from mltrain.commands.watch import Look
from tests.support.workplace import Workplace


def test_another_terminal_follows_a_training_to_its_end(workplace: Workplace) -> None:
    training = workplace.start("train", "tiny.py", "epochs=3", "sleep=0.05")
    run_id = training.run_id
    watched = workplace.elsewhere("there").start("watch", run_id, "--every", "0.2")
    assert training.wait().code == 0
    done = watched.wait()
    assert done.code == 0, done.err
    assert "epoch 3 of 3  val/loss " in done.out
    assert "system/" not in done.out
    assert done.out.splitlines()[0] == f"Following run {run_id} ..."
    assert done.out.splitlines()[-1] == f"Run {run_id} is finished."


def test_the_run_and_its_state_are_printed_before_the_first_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []

    def connected(*, retry_seconds: float) -> None:
        printed.append(capsys.readouterr().out)

    def looks(*_: object) -> Iterator[Look]:
        yield Look("a" * 32, "net lr=1", "running", None, 6, {}, "val/f1", None, None, 0.0)
        printed.append(capsys.readouterr().out)
        yield Look("a" * 32, "net lr=1", "finished", 6, 6, {}, "val/f1", None, None, 0.0)

    monkeypatch.setattr("mltrain.tracking.client.connect", connected)
    monkeypatch.setattr("mltrain.commands.watch.watch", looks)
    watch_("aaaa", every=2.0)
    assert printed == ["Following run aaaa ...\n", f"net lr=1 ({'a' * 32}) is running, no epoch done yet.\n"]


@pytest.mark.parametrize(("silent", "said"), [(5.0, False), (45.0, True)])
def test_the_live_view_has_progress_the_deciding_metric_first_and_says_when_heartbeats_stop(
    silent: float, said: bool
) -> None:
    metrics = {"epoch": 3.0, "train/loss": 0.5, "val/loss": 0.7, "val/f1": 0.9}
    look = Look("a" * 32, "net lr=1", "running elsewhere", 3, 6, metrics, "val/f1", None, None, silent)
    shown = io.StringIO()
    Console(file=shown, width=100).print(rendered(look))
    text = shown.getvalue()
    assert "3 of 6" in text
    assert text.index("val/f1") < text.index("val/loss") < text.index("train/loss")
    assert ("no heartbeat for 45 s" in text) == said
    assert "━" in text
