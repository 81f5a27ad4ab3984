from pathlib import Path

import pandas as pd
import pytest

from projects.cardiac import ablation, chain
from projects.cardiac.ablation import Experiment, Row, table


def test_the_table_compares_the_seeds() -> None:
    records = [{"training": "a", "seed": seed, "val/infarct_dice": value} for seed, value in enumerate((0.2, 0.4, 0.6))]
    records.append({"training": "motion", "seed": 0, "val/epe_px": 1.0})
    found = table(records).set_index(["training", "score"])
    row = found.loc[("a", "val/infarct_dice")]
    assert (row["mean"], row["min"], row["max"], row["seeds"]) == pytest.approx((0.4, 0.2, 0.6, 3))
    assert found.loc[("motion", "val/epe_px")]["seeds"] == 1
    assert len(found) == 2


def test_names_of_the_rows_are_different() -> None:
    assert len({row.name for row in ablation.ROWS}) == len(ablation.ROWS)


def test_what_is_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def trained(stage: str, preset: str, to: Path, **overrides: object) -> dict[str, float]:
        done.append(to.name)
        to.mkdir(parents=True)
        return {"val/loss": float(len(done))}

    monkeypatch.setattr(chain, "train", trained)
    experiment = Experiment(tmp_path / "seed_0", 0, "quick", 1)
    first = experiment.run([Row("acute", "all", "carried_over")])
    assert done == ["motion", "registration-masks", "acute-all-carried_over-masks"]
    again = experiment.run([Row("acute", "all", "carried_over"), Row("acute", "all", "carried_over", "intensity")])
    assert done[3:] == ["registration-intensity", "acute-all-carried_over-intensity"]
    assert len(first) == 3
    assert len(again) == 5
    assert pd.DataFrame(again)["seed"].eq(0).all()
