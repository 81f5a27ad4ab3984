"""What a run records of itself, in MLflow's own database."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mltrain.run.opening import open_run
from tests.support.database import use_database


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    return MlflowClient(use_database(monkeypatch, tmp_path))


def recorded(client: MlflowClient, samples: dict[str, Path | str]) -> dict[str, tuple[str, str, str, str]]:
    """The datasets of a run: name to digest, type, place and context."""
    run = open_run()
    run.record.data({}, samples)
    run.close("FINISHED", "done", 60.0)
    return {
        one.dataset.name: (
            one.dataset.digest,
            one.dataset.source_type,
            json.loads(one.dataset.source)["uri"],
            one.tags[0].value,
        )
        for one in client.get_run(run.id).inputs.dataset_inputs
    }


def test_sample_data_are_datasets_with_digest_and_source(client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "one.txt").write_text("one")
    found = recorded(client, {"pictures": folder, "val pictures": folder, "tools": "generate(seed=0)"})
    assert found["pictures"][1:] == ("local", str(folder), "training")
    assert found["val pictures"] == (*found["pictures"][:3], "evaluation")
    assert found["tools"][1:] == ("code", "generate(seed=0)", "training")
    (folder / "one.txt").write_text("two")
    other = recorded(client, {"pictures": folder, "val pictures": folder, "tools": "generate(seed=1)"})
    for name in ("pictures", "tools"):
        assert other[name][0] != found[name][0]
        assert 1 <= len(other[name][0]) <= 36
