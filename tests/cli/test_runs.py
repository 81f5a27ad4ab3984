"""``mltrain compare`` shows what differs."""

from tests.support.workplace import Workplace


def test_runs_stand_side_by_side_with_what_differs(workplace: Workplace) -> None:
    runs = [workplace.mltrain("train", "tiny.py", "epochs=1", f"lr={rate}").run_id for rate in ("1e-2", "0.01", "0.3")]
    found = workplace.mltrain("compare", *runs, "--json").json
    assert found["parameters"] == {"lr": [0.01, 0.01, 0.3]}
    assert [run["run_id"] for run in found["runs"]] == runs
    assert found["best"]["epoch"] == [1, 1, 1]
    assert found["best"]["val/loss"][0] == found["best"]["val/loss"][1] == found["last"]["val/loss"][0]
    assert found["best"]["val/loss"][2] != found["best"]["val/loss"][0]
    said = workplace.mltrain("compare", *runs)
    assert said.code == 0, said.err
    assert "lr" in said.out
    assert "batch_size" not in said.out
    alone = workplace.mltrain("compare", runs[0])
    assert (alone.code, "two or more" in alone.err) == (2, True)
