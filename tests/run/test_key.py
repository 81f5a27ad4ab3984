"""Of all runs with the same key one holds it."""

import threading

import pytest
from mlflow import MlflowClient

from mltrain.errors import MltrainError, RunHeld, UsageError
from mltrain.run.key import confirm, find, refuse_unusable_key
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import RUN_KEY_TAG


@pytest.fixture
def client(server: TrackingClient) -> MlflowClient:
    return server.client.preferred()  # type: ignore[no-any-return] # it is one


def begun(client: MlflowClient, began: int, key: str = "nightly") -> str:
    return str(client.create_run("0", start_time=began, tags={RUN_KEY_TAG: key}).info.run_id)


def found(server: TrackingClient, key: str = "nightly") -> str | None:
    run = find(server, None, None, key)
    return run.info.run_id if run is not None else None


def test_a_key_is_found_only_in_the_run_that_has_it(server: TrackingClient, client: MlflowClient) -> None:
    assert found(server) is None
    run, other = begun(client, 1), begun(client, 1, "weekly")
    for one, key in ((run, "nightly"), (other, "weekly")):
        confirm(server, one, key)
        confirm(server, one, key)  # as a resume does
        assert client.get_run(one).data.params == {RUN_KEY_TAG: key}
    assert (found(server), found(server, "weekly"), found(server, "week")) == (run, other, None)
    client.delete_run(run)
    assert found(server) is None
    assert find(server, "no such experiment", None, "nightly") is None
    assert client.get_experiment_by_name("no such experiment") is None


def test_a_run_whose_process_died_before_it_confirmed_the_key_is_found(
    server: TrackingClient, client: MlflowClient
) -> None:
    run = begun(client, 1)
    assert found(server) == run


def test_of_two_that_see_each_other_the_older_one_has_the_key(server: TrackingClient, client: MlflowClient) -> None:
    older, younger = begun(client, 1), begun(client, 2)
    with pytest.raises(RunHeld, match=older):
        confirm(server, younger, "nightly")
    confirm(server, older, "nightly")
    with pytest.raises(RunHeld, match=older):
        confirm(server, younger, "nightly")
    assert found(server) == older


def test_an_older_one_that_came_later_gives_way(server: TrackingClient, client: MlflowClient) -> None:
    younger = begun(client, 2)
    confirm(server, younger, "nightly")
    older = begun(client, 1)
    with pytest.raises(RunHeld, match=younger):
        confirm(server, older, "nightly")
    assert found(server) == younger


@pytest.mark.parametrize("first", ["older", "younger"])
def test_one_that_was_seen_alone_does_not_get_the_key_behind_the_others_back(
    first: str, server: TrackingClient, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The younger run lists the runs first, but writes last."""
    younger, older = begun(client, 2), ""
    write = TrackingClient.log_param

    def late(self: TrackingClient, run_id: str, name: str, value: str) -> None:
        nonlocal older
        monkeypatch.setattr(TrackingClient, "log_param", write)
        older = begun(client, 1)
        if first == "older":
            confirm(server, older, "nightly")
        write(self, run_id, name, value)

    monkeypatch.setattr(TrackingClient, "log_param", late)
    if first == "older":
        with pytest.raises(RunHeld) as refused:
            confirm(server, younger, "nightly")
        assert older in str(refused.value)
    else:
        confirm(server, younger, "nightly")
        with pytest.raises(RunHeld, match=younger):
            confirm(server, older, "nightly")
    assert found(server) == (older if first == "older" else younger)


def test_many_that_begin_at_the_same_moment_make_one_run(server: TrackingClient, client: MlflowClient) -> None:
    barrier, won, lost = threading.Barrier(4), [], []

    def begin(began: int) -> None:
        barrier.wait()
        run = begun(client, began)
        try:
            confirm(server, run, "nightly")
            won.append(run)
        except MltrainError as error:
            lost.append(error)

    threads = [threading.Thread(target=begin, args=(began,)) for began in (4, 3, 2, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1, lost
    assert all(isinstance(error, RunHeld) for error in lost), lost
    assert found(server) == won[0]


def test_a_restored_run_makes_a_key_ambiguous(server: TrackingClient, client: MlflowClient) -> None:
    deleted = begun(client, 1)
    confirm(server, deleted, "nightly")
    client.delete_run(deleted)
    confirm(server, begun(client, 2), "nightly")
    client.restore_run(deleted)
    with pytest.raises(UsageError, match=r"belongs to 2 runs.*--resume-run"):
        found(server)


@pytest.mark.parametrize("key", ["", " a", "it's", "a\n", "a" * 201, "é", '"', "(duplicate)", 3, None])
def test_a_key_that_cannot_be_searched_for_is_refused(key: object) -> None:
    with pytest.raises(UsageError, match="is not a run key"):
        refuse_unusable_key(key)


def test_a_key_that_would_be_masked_in_the_run_is_refused() -> None:
    with pytest.raises(UsageError, match="looks like a secret"):
        refuse_unusable_key("sqlite://user:password@host/nightly")


@pytest.mark.parametrize("key", ["nightly", "slurm-71_0", "a/b:c@d.e=1,f+g h", "_0", "x" * 200])
def test_other_keys_are_accepted(key: str) -> None:
    refuse_unusable_key(key)
