"""Runs the tiny pipeline as a user does."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.support.equality import identical
from tests.support.workplace import Done, Started, Workplace

TINY_PIPELINE = Path(__file__).parent / "tiny_pipeline.py"
STAGES = ["numbers", "first", "second"]


@dataclass(frozen=True)
class TinyPipeline:
    """The tiny pipeline in a workplace."""

    workplace: Workplace

    def __post_init__(self) -> None:
        shutil.copy(TINY_PIPELINE, self.workplace.folder)

    def elsewhere(self, name: str = "elsewhere") -> "TinyPipeline":
        return TinyPipeline(self.workplace.elsewhere(name))

    def __call__(self, *words: str | Path) -> Done:
        return self.workplace.mltrain("pipeline", "tiny_pipeline.py", *words)

    def start(self, *words: str | Path) -> Started:
        return self.workplace.start("pipeline", "tiny_pipeline.py", *words)

    def actions(self, *words: str | Path) -> dict[str, str]:
        """Run with --json; return for each stage what was done, once it went well."""
        done = self(*words, "--json")
        assert done.code == 0, done.err
        return {stage["stage"]: stage["action"] for stage in done.json["stages"]}

    def status(self, *words: str | Path) -> dict[str, Any]:
        done = self("--status", "--json", *words)
        assert done.code == 0, done.err
        return {row["stage"]: row for row in done.json["stages"]}

    def states(self, *words: str | Path) -> list[str]:
        return [row["state"] for row in self.status(*words).values()]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.workplace.uri)

    def runs(self) -> dict[str, str]:
        """Return the statuses of all runs, as the UI shows."""
        return {run.info.run_id: str(run.info.status) for run in self.client.search_runs(["0"])}

    def parents(self) -> list[str]:
        found = self.client.search_runs(["0"], filter_string="tags.`mltrain.pipeline` = 'tiny'")
        return [run.info.run_id for run in found if "mltrain.stage" not in run.data.tags]

    def run_of(self, stage: str) -> str:
        return str(self.status()[stage]["run_id"])

    def artifacts(self, run_id: str) -> Path:
        return Path(self.client.get_run(run_id).info.artifact_uri)

    def weights(self, stage: str) -> dict[str, Any]:
        """Every part of a stage's newest checkpoint."""
        return self.workplace.weights(self.run_of(stage))

    def same_as(self, other: "TinyPipeline") -> bool:
        """Whether the models of both pipelines are bit-identical. With optimizer, counters and random numbers."""
        return all(identical(self.weights(stage), other.weights(stage)) for stage in STAGES[1:])
