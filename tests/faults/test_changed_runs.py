"""Another process deletes, restores or closes a run in training."""

import signal

import pytest
from mlflow import MlflowClient

from tests.support.waiting import eventually
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults


def test_a_run_that_is_deleted_and_restored_while_it_trains_is_complete_at_its_end(workplace: Workplace) -> None:
    started = workplace.start("train", "tiny.py", "epochs=40", "sleep=0.1")
    run_id = started.run_id
    started.until("epoch    1/")
    client = MlflowClient(workplace.uri)
    client.delete_experiment("0")  # and with it its runs
    started.until_reported("was deleted")
    client.restore_experiment("0")
    done = started.wait()
    assert done.code == 0, done.err
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["epoch"]) == ("FINISHED", 40)
    assert len(client.get_metric_history(run_id, "val/loss")) == 40
    assert "mltrain sync" not in done.out


def test_a_run_that_is_deleted_meanwhile_goes_on_and_is_sent_when_it_is_back(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    started = workplace.start("train", "tiny.py", "sleep=0.3", MLTRAIN_GRACE_SECONDS="2")
    run_id = started.run_id
    started.until("epoch    1/4")
    client = MlflowClient(workplace.uri)
    client.delete_run(run_id)
    done = started.wait()
    assert done.code == 0, done.err
    assert "was deleted" in done.err
    assert "mltrain sync" in done.out
    client.restore_run(run_id)
    assert workplace.mltrain("sync").code == 0
    reference, reference_id = undisturbed
    assert workplace.points(run_id) == reference.points(reference_id)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_somebody_sets_finished_is_running_again_and_a_warning_reports_it(workplace: Workplace) -> None:
    started = workplace.start("train", "tiny.py", "epochs=1000", "sleep=0.05")
    run_id = started.run_id
    started.until("epoch ")
    client = MlflowClient(workplace.uri)
    client.set_terminated(run_id, "FINISHED")
    eventually(lambda: client.get_run(run_id).info.status == "RUNNING", "a run that is RUNNING again")
    started.child.kill(signal.SIGTERM)
    done = started.wait()
    assert "Somebody set the run to FINISHED" in done.err
    assert client.get_run(run_id).info.status == "KILLED"
