"""``mltrain prune`` asks, and leaves a live run alone."""

from tests.support.workplace import Workplace


def test_without_yes_prune_asks_and_removes_nothing(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=3").run_id
    asked = workplace.mltrain("prune", run_id, "--keep", "Latest(1)")
    assert "Remove these?" in asked.out
    assert len(workplace.checkpoint_names(run_id)) == 3


def test_a_live_run_is_not_pruned_from_outside(workplace: Workplace) -> None:
    started = workplace.start("train", "tiny.py", "epochs=1000", "sleep=0.05")
    run_id = started.run_id
    started.until("epoch ")
    assert workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes").code == 4
    whole = workplace.mltrain("prune", "--experiment", "Default", "--keep", "Latest(1)", "--yes", "--json").json
    assert [plan["left_alone"] for plan in whole] == ["it is being trained"]
    started.child.kill(15)
    started.wait()


def test_a_policy_that_ranks_by_a_metric_that_no_checkpoint_has_removes_nothing(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=3").run_id
    keep = ("--keep", "Latest(1) | Best(1, 'val/los')")
    for how in (["--yes"], ["--dry-run"], ["--yes", "--json"]):
        refused = workplace.mltrain("prune", run_id, *keep, *how)
        assert refused.code == 2
        assert "has a finite value of 'val/los'" in refused.err
        assert "Did you mean 'val/loss'?" in refused.err
        skipped = workplace.mltrain("prune", "--experiment", "Default", *keep, *how)
        assert skipped.code == 2, "not a single run could be pruned"
        assert "Did you mean 'val/loss'?" in skipped.out
    assert len(workplace.checkpoint_names(run_id)) == 3
    keep = ("--keep", "Latest(1) | Best(1, 'train/accuracy', 'max')")
    assert workplace.mltrain("prune", run_id, *keep, "--yes").code == 0
    assert len(workplace.checkpoint_names(run_id)) < 3
