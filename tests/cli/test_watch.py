"""``mltrain watch`` from another terminal."""

import io

import pytest
from rich.console import Console

from mltrain.cli.watch import rendered
from mltrain.commands.watch import Look
from tests.support.workplace import Workplace


def test_another_terminal_follows_a_training_to_its_end(workplace: Workplace) -> None:
    training = workplace.start("train", "tiny.py", "epochs=3", "sleep=0.05")
    run_id = training.until("run_id=").partition("run_id=")[2].split()[0]
    watched = workplace.elsewhere("there").start("watch", run_id, "--every", "0.2")
    assert training.wait().code == 0
    done = watched.wait()
    assert done.code == 0, done.err
    assert "epoch 3 of 3  val/loss " in done.out
    assert "system/" not in done.out
    assert done.out.splitlines()[-1] == f"Run {run_id} is finished."


@pytest.mark.parametrize(("silent", "said"), [(5.0, False), (45.0, True)])
def test_the_live_view_has_progress_the_deciding_metric_first_and_says_when_heartbeats_stop(
    silent: float, said: bool
) -> None:
    metrics = {"epoch": 3.0, "train/loss": 0.5, "val/loss": 0.7, "val/f1": 0.9}
    look = Look("a" * 32, "net lr=1", "net", "running elsewhere", 3, 6, metrics, "val/f1", None, None, silent)
    shown = io.StringIO()
    Console(file=shown, width=100).print(rendered(look))
    text = shown.getvalue()
    assert "3 of 6" in text
    assert text.index("val/f1") < text.index("val/loss") < text.index("train/loss")
    assert ("no heartbeat for 45 s" in text) == said
    assert "━" in text
