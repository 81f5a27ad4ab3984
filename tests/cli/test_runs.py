"""``mltrain compare`` shows what differs."""

import sqlite3
from contextlib import closing

from tests.support.workplace import Workplace


def test_runs_stand_side_by_side_with_what_differs(workplace: Workplace) -> None:
    runs = [workplace.mltrain("train", "tiny.py", "epochs=1", f"lr={rate}").run_id for rate in ("1e-2", "0.01", "0.3")]
    found = workplace.mltrain("compare", *runs, "--json").json
    assert found["parameters"] == {"lr": [0.01, 0.01, 0.3]}
    assert [run["run_id"] for run in found["runs"]] == runs
    assert found["best"]["epoch"] == [1, 1, 1]
    assert found["best"]["val/loss"][0] == found["best"]["val/loss"][1] == found["last"]["val/loss"][0]
    assert found["best"]["val/loss"][2] != found["best"]["val/loss"][0]
    said = workplace.mltrain("compare", *runs, "--html", "page.html", "--figure", "curves.png")
    assert said.code == 0, said.err
    assert (workplace.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (workplace.folder / "page.html").read_text()
    assert all(run_id in page for run_id in runs)
    assert "system/" not in page + said.out
    assert "lr" in said.out
    assert "batch_size" not in said.out
    refused = workplace.mltrain("compare", *runs, "--figure", "curves.doc", "--html", "refused.html")
    assert (refused.code, (workplace.folder / "refused.html").exists()) == (2, False)
    no_folder = workplace.mltrain("compare", "nothing-is-asked", "for-it", "--html", "curves.png/page.html")
    assert (no_folder.code, "not a folder" in no_folder.err) == (5, True), "refused before a run is looked for"
    many = workplace.mltrain("compare", *runs, *runs).out.splitlines()
    head = many.index("Parameters that differ (6)") + 1
    assert many[head].split() == ["run", "lr"], "many runs have a row each"
    assert many[head + 3].split() == [runs[2][:8], "0.3"]
    alone = workplace.mltrain("compare", runs[0])
    assert (alone.code, "two or more" in alone.err) == (2, True)


def test_a_key_that_a_resume_changed_is_compared_with_its_newest_value_and_all_before(workplace: Workplace) -> None:
    first = workplace.mltrain("train", "tiny.py", "epochs=1", "lr=0.01").run_id
    for words in (["epochs=2", "lr=0.001", "sleep=0.001"], ["epochs=3"]):
        done = workplace.mltrain("train", "--resume-run", first, *words)
        assert done.code == 0, done.err
    second = workplace.mltrain("train", "tiny.py", "epochs=3", "lr=0.001").run_id
    found = workplace.mltrain("compare", first, second, "--json").json
    assert found["parameters"] == {"epochs": [3, 3], "lr": [0.001, 0.001], "sleep": [0.001, 0.0]}
    assert found["changed"] == [{"epochs": ["1", "2", "3"], "lr": ["0.01", "0.001"], "sleep": ["0.0", "0.001"]}, {}]
    said = workplace.mltrain("compare", first, second)
    assert "0.01 → 0.001" in said.out
    assert "1 → 2 → 3" in said.out
    back = workplace.mltrain("train", "--resume-run", first, "--resume-from", "epoch:1", "epochs=2")
    assert back.code == 0, back.err
    again = workplace.mltrain("compare", first, second, "--json").json
    assert again["parameters"]["lr"] == [0.01, 0.001]
    assert again["changed"][0]["lr"] == ["0.01", "0.001", "0.01"]
    died = workplace.mltrain("train", "--resume-run", first, "epochs=4", "lr=0.5", "kill_at=14")
    assert died.code == -9, died.err
    last = workplace.mltrain("compare", first, second, "--json").json
    assert last["parameters"]["lr"] == [0.5, 0.001], "the newest attempt trained with it, and committed nothing"


def test_runs_are_listed_with_their_best_value_sorted_and_selected(workplace: Workplace) -> None:
    rates = {
        workplace.mltrain("train", "tiny.py", "epochs=1", f"lr={rate}").run_id: rate for rate in ("1e-3", "0.1", "1e-2")
    }
    found = workplace.mltrain("runs", "--json").json
    values = {one["run_id"]: one["best_value"] for one in found}
    assert values.keys() == rates.keys()
    assert all(one["best_value"] == one["metrics"]["val/loss"] for one in found)
    ranked = sorted(values, key=lambda run_id: values[run_id])
    assert [one["run_id"] for one in workplace.mltrain("runs", "--sort", "val/loss", "--json").json] == ranked
    most = workplace.mltrain("runs", "--sort", "val/loss", "--mode", "max", "--most", "1", "--json").json
    assert [one["run_id"] for one in most] == ranked[-1:]
    middle = repr(values[ranked[1]])
    for condition, expected in ((f"val/loss<{middle}", 1), (f"val/loss <= {middle}", 2), ("no/such > 0", 0)):
        assert len(workplace.mltrain("runs", "--where", condition, "--json").json) == expected, condition
    compared = workplace.mltrain("compare", *ranked, "--json").json
    with closing(sqlite3.connect(workplace.folder / "mlflow.db")) as database, database:
        assert database.execute("DELETE FROM tags WHERE key = 'mltrain.at_best'").rowcount == 3
    assert workplace.mltrain("runs", "--json").json == found, "the manifests tell the same as the tags"
    assert workplace.mltrain("compare", *ranked, "--json").json == compared
    shown = workplace.mltrain("runs", "--sort", "val/loss").out
    assert f"val/loss {values[ranked[0]]:.5g}" in shown
    for words in (("--where", "val/loss"), ("--sort", "train/loss"), ("--sort", "val/loss", "--mode", "best")):
        assert workplace.mltrain("runs", *words).code == 2, words
