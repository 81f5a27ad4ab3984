"""Claims, delivery and deduplication on PostgreSQL behind a server. The server has MLflow's own number of workers."""

import json
import threading

from mlflow import MlflowClient

from mltrain.errors import RunHeld
from mltrain.ownership.attempts import claim_attempt
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
from tests.support.waiting import eventually
from tests.support.workplace import Workplace


def test_of_many_claims_at_once_exactly_one_wins(on_postgres: Workplace) -> None:
    client = MlflowClient(on_postgres.uri)
    run_id = client.create_run("0").info.run_id
    for ordinal in range(2, 12):
        won: list[str] = []
        begin = threading.Barrier(8)

        def claim(number: int, ordinal: int = ordinal, won: list[str] = won, begin: threading.Barrier = begin) -> None:
            server = TrackingClient(on_postgres.uri, MlflowClient(on_postgres.uri))
            begin.wait()
            try:
                server.log_param(run_id, f"mltrain.attempt.{ordinal}", json.dumps({"attempt": ordinal, "pid": number}))
                won.append(str(number))
            except Refusal as error:
                assert "Changing param values" in str(error.__cause__), error

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = json.loads(client.get_run(run_id).data.params[f"mltrain.attempt.{ordinal}"])
        assert won == [str(held["pid"])]


def test_a_claim_that_is_lost_is_refused(on_postgres: Workplace) -> None:
    server = TrackingClient(on_postgres.uri, MlflowClient(on_postgres.uri))
    run_id = MlflowClient(on_postgres.uri).create_run("0").info.run_id
    MlflowClient(on_postgres.uri).log_param(run_id, "mltrain.attempt.2", '{"attempt": 2}')
    try:
        claim_attempt(server, run_id, 2)
    except RunHeld:
        return
    raise AssertionError("the claim was granted twice")


def test_a_killed_training_is_resumed_and_its_curves_are_those_of_an_undisturbed_one(on_postgres: Workplace) -> None:
    undisturbed = on_postgres.mltrain("train", "tiny.py")
    killed = on_postgres.mltrain("train", "tiny.py", "kill_at=14")
    assert (undisturbed.code, killed.code) == (0, -9), undisturbed.err + killed.err
    resumed = on_postgres.elsewhere("there").mltrain("train", "--resume-run", killed.run_id, "kill_at=0")
    assert resumed.code == 0, resumed.err
    expected = on_postgres.points(undisturbed.run_id)
    assert expected
    assert on_postgres.points(killed.run_id) == expected


def test_of_two_resumes_at_once_one_trains(on_postgres: Workplace) -> None:
    stopped = on_postgres.mltrain("train", "tiny.py", "signal_at=4", "epochs=40")
    assert stopped.code == 75, stopped.err
    words = ["train", "--resume-run", stopped.run_id, "signal_at=0", "epochs=4", "sleep=0.05"]
    pair = [place.start(*words) for place in (on_postgres, on_postgres.elsewhere("there"))]
    eventually(lambda: any(one.child.ended.is_set() for one in pair), "a refusal")
    assert sorted(one.wait(200).code for one in pair) == [0, 4]
    points = on_postgres.points(stopped.run_id)
    assert all(len({step for step, _ in found}) == len(found) for found in points.values()), "every step once"


def test_points_that_are_sent_twice_are_one(on_postgres: Workplace) -> None:
    server = TrackingClient(on_postgres.uri, MlflowClient(on_postgres.uri))
    run_id = MlflowClient(on_postgres.uri).create_run("0").info.run_id
    points = [("val/loss", 1.0 / step, 1_000_000 + step, step) for step in range(1, 501)]
    for _ in range(3):
        server.log_points(run_id, points)
    found = MlflowClient(on_postgres.uri).get_metric_history(run_id, "val/loss")
    assert len(found) == len(points)
