"""Ablation of the chain over several seeds::

    python -m projects.cardiac.ablation --to ablation --seeds 0 1 2

Every seed draws its own patients, trains motion once and registration with and without masks, and then an infarct
network for every row of the table. Scores are of the last epoch on held-out patients, against the exact infarct.
If repeated, the command skips finished trainings.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from projects.cardiac import chain, preparation
from projects.cardiac.prepared import RECORD


@dataclass(frozen=True)
class Row:
    """One way to train the infarct network."""

    phantom: str
    inputs: str
    labels: str
    registration: str = "masks"

    @property
    def name(self) -> str:
        """A name for a folder."""
        return "-".join((self.phantom, self.inputs, self.labels, self.registration))


ROWS = (
    Row("acute", "anatomy", "exact"),
    Row("acute", "frames", "exact"),
    Row("acute", "motion", "exact"),
    Row("acute", "all", "exact"),
    Row("acute", "frames", "carried_over"),
    Row("acute", "all", "carried_over"),
    Row("acute", "all", "carried_over", "intensity"),
    Row("chronic", "anatomy", "exact"),
    Row("chronic", "frames", "exact"),
    Row("chronic", "all", "exact"),
)
"""The rows of the table: phantom, inputs, labels, and how the labels were carried over."""

_REGISTRATIONS: dict[str, dict[str, object]] = {
    "masks": {},
    "intensity": {"mask_weight": 0.0, "fill_scar": False},  # grey levels alone, no drawn masks
}


@dataclass(frozen=True)
class Experiment:
    """All trainings of one seed, in a folder.

    Attributes:
        folder: the folder of the trainings.
        seed: seed of phantoms and trainings.
        preset: preset of every stage.
        threads: threads of torch.
    """

    folder: Path
    seed: int
    preset: str
    threads: int

    def run(self, rows: Sequence[Row] = ROWS) -> list[dict[str, object]]:
        """Do the missing trainings and return a record per network."""
        prepared = {kind: self._prepared(kind) for kind in sorted({row.phantom for row in rows})}
        # Motion and registration do not learn from infarct labels, so the networks of acute phantoms serve both kinds.
        acute = prepared.get("acute") or self._prepared("acute")
        motion = self._stage("motion", "motion", prepared=acute)
        registrations = {
            kind: self._stage("registration", f"registration-{kind}", prepared=acute, **changes)
            for kind, changes in _REGISTRATIONS.items()
            if any(row.registration == kind for row in rows)
        }
        for row in rows:
            self._stage(
                "infarct",
                row.name,
                prepared=prepared[row.phantom],
                motion_weights=motion,
                registration_weights=registrations[row.registration],
                inputs=row.inputs,
                labels=row.labels,
            )
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("*/measured.json"))]

    def _prepared(self, kind: str) -> Path:
        to = self.folder / f"prepared-{kind}"
        if not (to / RECORD).is_file():
            given = {"seed": self.seed, "chronic": kind == "chronic", "num_threads": self.threads}
            preparation.prepare(preparation.Config.load(preset=self.preset, overrides=given), to)
        return to

    def _stage(self, stage: str, name: str, **overrides: object) -> Path:
        to = self.folder / name
        if not (to / "measured.json").is_file():
            measured = chain.train(stage, self.preset, to, seed=self.seed, num_threads=self.threads, **overrides)
            record = {"training": name, "seed": self.seed, **measured}
            (to / "measured.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return to


def table(records: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Return one row per training and score: mean, minimum and maximum over the seeds."""
    long = pd.DataFrame(records).melt(["training", "seed"], var_name="score", value_name="value").dropna()
    long["value"] = long["value"].astype(float)
    found = long.groupby(["training", "score"])["value"].agg(["mean", "min", "max", "count"])
    return found.rename(columns={"count": "seeds"}).reset_index()


def main(arguments: list[str] | None = None) -> int:
    """Run the ablation and write ``ablation.csv`` and ``runs.csv``."""
    parser = argparse.ArgumentParser(prog="python -m projects.cardiac.ablation", description=main.__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder for trainings and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--preset", default="small", help="preset of every stage (default small)")
    parser.add_argument("--num-threads", type=int, default=1, help="threads of torch (default 1)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records: list[dict[str, object]] = []
    for seed in given.seeds:
        records += Experiment(given.to / f"seed_{seed}", seed, given.preset, given.num_threads).run()
        pd.DataFrame(records).to_csv(given.to / "runs.csv", index=False)
        table(records).to_csv(given.to / "ablation.csv", index=False)
    shown = table(records)
    wanted = shown["score"].isin(["val/infarct_dice", "val/epe_px", "val/dice_es", "val/dice_myo", "val/dice_label"])
    print(shown[wanted].to_string(index=False, float_format="%.3f"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
