"""``mltrain ui`` as a user starts and ends it."""

import signal

import pytest

from tests.support.workplace import Workplace


def test_a_run_that_is_not_there_is_refused(workplace: Workplace) -> None:
    done = workplace.mltrain("ui", "f" * 32)
    assert (done.code, "mltrain runs" in done.err) == (2, True)


@pytest.mark.slow
def test_the_address_is_printed_until_ctrl_c(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=1").run_id
    started = workplace.start("ui", run_id, "--no-open")
    said = started.until("Look at http://127.0.0.1:", timeout=120)
    assert f"/runs/{run_id}?workflowType=machine_learning" in started.until("until Ctrl+C") + said
    started.child.kill(signal.SIGINT)
    assert started.wait(60).code == 0
