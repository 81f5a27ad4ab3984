"""Models and registered versions made from a run's checkpoints."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import ENDPOINT_NOT_FOUND, INTERNAL_ERROR, MlflowException

from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
from mltrain.tracking.registry import in_use, made_models, remove_models

FIRST, SECOND, THIRD = (f"step-{number:09d}-a01" for number in (1, 2, 3))


@pytest.fixture
def client(server: TrackingClient) -> MlflowClient:
    return server.client.preferred()  # type: ignore[no-any-return] # it is one


def made_from(server: TrackingClient, run_id: str, checkpoint: str) -> Any:
    tags = {"mltrain.checkpoint": checkpoint}
    return server.client.create_logged_model("0", name="model", source_run_id=run_id, tags=tags)


def test_a_version_protects_its_checkpoint_named_by_place_or_through_a_model(
    server: TrackingClient, client: MlflowClient
) -> None:
    run_id, other = (client.create_run("0").info.run_id for _ in range(2))
    model = made_from(server, run_id, SECOND)
    made_from(server, run_id, THIRD)
    made_from(server, run_id, "no name of a checkpoint")
    client.create_registered_model("wear")
    client.create_model_version("wear", f"runs:/{run_id}/checkpoints/{FIRST}", run_id)
    client.create_model_version("wear", model.artifact_location)
    made = made_models(server, run_id, "0")
    assert sorted(one.checkpoint for one in made) == [SECOND, THIRD]
    assert in_use(server, run_id, made) == {FIRST, SECOND}
    assert in_use(server, other, made_models(server, other, "0")) == set()


def test_only_the_models_of_a_checkpoint_go_and_their_files_before_them(
    server: TrackingClient, client: MlflowClient
) -> None:
    run_id = client.create_run("0").info.run_id
    gone, stays = made_from(server, run_id, FIRST), made_from(server, run_id, SECOND)
    for model in (gone, stays):
        place = Path(model.artifact_location)
        place.mkdir(parents=True)
        (place / "weights").write_bytes(b"weights")
    for _ in range(2):  # it can be repeated
        remove_models(server, made_models(server, run_id, "0"), FIRST)
    assert [one.model_id for one in made_models(server, run_id, "0")] == [stays.model_id]
    assert [Path(one.artifact_location).exists() for one in (gone, stays)] == [False, True]


def test_a_server_older_than_logged_models_has_none(server: TrackingClient) -> None:
    class Old(MlflowClient):
        code = ENDPOINT_NOT_FOUND

        def search_logged_models(self, *_: Any, **__: Any) -> Any:
            raise MlflowException("no such endpoint", error_code=self.code)

    class Broken(Old):
        code = INTERNAL_ERROR

    old, broken = (TrackingClient(server.uri, kind(server.uri)) for kind in (Old, Broken))
    assert made_models(old, "f" * 32, "0") == []
    with pytest.raises(Refusal):
        made_models(broken, "f" * 32, "0")
