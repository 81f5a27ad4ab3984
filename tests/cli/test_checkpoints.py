"""``mltrain checkpoints``, ``inspect``, ``pin`` and ``unpin`` on a real run."""

from tests.support.workplace import Workplace


def test_retention_keeps_the_newest_and_the_best_in_the_store(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    rows = workplace.mltrain("checkpoints", run_id, "--json").json
    assert [row["step"] for row in rows][-2:] == [30, 36]
    assert len(rows) <= 3
    assert sum("best" in row["is"] for row in rows) == 1
    removed = (workplace.folder / "mlruns/0" / run_id / "artifacts/retention.jsonl").read_text().splitlines()
    assert len(removed) == 6 - len(rows)


def test_inspect_tells_parts_sizes_and_that_it_is_intact(trained: tuple[Workplace, str]) -> None:
    workplace, run_id = trained
    facts = workplace.mltrain("inspect", run_id, "--json").json
    assert facts["step"] == 36
    assert facts["problems"] == []
    assert {part["part"] for part in facts["parts"]} >= {"model", "optimizer", "scheduler", "loader", "rng", "history"}
    assert "Intact" in workplace.mltrain("inspect", run_id).out


def test_a_pinned_checkpoint_survives_a_prune_and_goes_after_it_is_unpinned(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=5").run_id
    pinned = workplace.mltrain("pin", run_id, "--checkpoint", "epoch:1", "--reason", "for the paper")
    assert pinned.code == 0, pinned.err
    dry = workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--dry-run", "--json").json
    assert "pinned: for the paper" in dry[0]["keep"].values()
    assert len(workplace.checkpoint_names(run_id)) == 5
    assert workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes").code == 0
    assert workplace.checkpoint_names(run_id)[0] == "step-000000006-a01"
    assert workplace.mltrain("unpin", run_id, "--checkpoint", "epoch:1").code == 0
    workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes")
    assert "step-000000006-a01" not in workplace.checkpoint_names(run_id)
    assert workplace.mltrain("verify", run_id).code == 0
