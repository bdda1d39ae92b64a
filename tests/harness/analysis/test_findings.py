"""Each planted flaw must be found by the program and named in the report."""

from pathlib import Path

import pytest

from harness.analysis.caveats import Finding, findings
from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.cost import Prices
from harness.analysis.verdict import verdict
from harness.job.declaration import Job
from harness.report.page.study import render
from tests.harness.made_runs import machine, write_run, write_study


def job(**changes) -> Job:
    return Job(**{"backend": "horovod", "slots": 2, "preset": "tiny", **changes})


def found_in(study: Path, code: str) -> tuple[Comparison, list[Finding]]:
    comparison = summarize_study(study)
    return comparison, [finding for finding in findings(comparison) if finding.code == code]


def named_on_the_page(comparison: Comparison, finding: Finding) -> bool:
    from markupsafe import escape

    return str(escape(finding.text)) in render(comparison, Prices())


def test_clean_study_has_nothing_grave_and_no_warning(tmp_path: Path) -> None:
    comparison = summarize_study(write_study(tmp_path / "clean", steps=60))
    assert [finding for finding in findings(comparison) if finding.level != "note"] == []


def test_slowed_rank_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "s", job(), step_s=0.5, own_s={0: 0.30, 1: 0.45})
    comparison, (finding,) = found_in(tmp_path / "s", "straggler")
    assert "rank 1" in finding.text
    assert "50 %" in finding.text
    assert "Look for other load" in finding.text
    assert named_on_the_page(comparison, finding)


@pytest.mark.parametrize(
    ("device", "busy", "told"),
    [
        ("cpu", {0: 0.28, 1: 0.42}, "the others' 280 for the same work: a slower, throttled or shared core."),
        ("cuda:1", {0: 0.28, 1: 0.42}, "shared core, or a GPU that launches wait for."),
        ("cpu", {0: 0.20, 1: 0.20}, "the others' 200: no slower, but kept from working."),
        ("cuda:1", {0: 0.20, 1: 0.20}, "it is not its processor. Look for a throttled or different GPU"),
    ],
)
def test_slow_processor_is_told_from_another_cause(
    tmp_path: Path, device: str, busy: dict[int, float], told: str
) -> None:
    ranks = [{"rank": rank, "world_size": 2, "hostname": "a", "device": device} for rank in range(2)]
    own = {0: 0.30, 1: 0.45}
    write_run(tmp_path / "s", job(), step_s=0.5, own_s=own, busy_s=busy, environment_changes={"ranks": ranks})
    _, (finding,) = found_in(tmp_path / "s", "straggler")
    assert told in finding.text


def test_equal_ranks_are_no_stragglers(tmp_path: Path) -> None:
    write_run(tmp_path / "s", job(), own_s={0: 0.40, 1: 0.41})
    assert found_in(tmp_path / "s", "straggler")[1] == []


def test_unlike_run_is_named_with_what_differs(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", repeats=1, steps=60)
    write_run(folder, job(weight_decay=0.01, run="odd-one"))
    comparison, (finding,) = found_in(folder, "unlike")
    assert "odd-one" in finding.text
    assert "weight decay is 0.001 in one and 0.01 in the other" in finding.text
    assert named_on_the_page(comparison, finding)


def test_unusable_answers_are_shouted(tmp_path: Path) -> None:
    write_run(tmp_path / "s", job(), unusable=1.0)
    comparison, (finding,) = found_in(tmp_path / "s", "unusable-answers")
    assert finding.level == "wrong"
    assert "100.0 % of the answers say neither Yes nor No" in finding.text
    page = render(comparison, Prices())
    assert "UNUSABLE ANSWERS" in page
    assert 'class="alarm"' in page


def test_a_few_unusable_answers_are_a_note(tmp_path: Path) -> None:
    write_run(tmp_path / "s", job(), unusable=0.03, images=120)
    assert found_in(tmp_path / "s", "unusable-answers")[1] == []
    assert [finding.level for finding in found_in(tmp_path / "s", "some-unusable-answers")[1]] == ["note"]


def test_three_per_cent_slowdown_is_named(tmp_path: Path) -> None:
    speeds = {"ddp": 0.5, "horovod": 0.515}
    comparison = summarize_study(write_study(tmp_path / "s", speeds=speeds, repeats=4, drift=0.05, steps=80))
    page = render(comparison, Prices())
    assert "PyTorch DDP is 3.0 % faster than Horovod" in page or "PyTorch DDP is 2.9 % faster than Horovod" in page \
        or "PyTorch DDP is 3.1 % faster than Horovod" in page  # fmt: skip
    assert all(pair.difference.real for pair in comparison.speed)


def test_same_weights_of_two_trainings_are_flagged(tmp_path: Path) -> None:
    write_run(tmp_path / "s", job(seed=0), weights="e" * 64)
    write_run(tmp_path / "s", job(seed=1, repeat=1), weights="e" * 64)
    _, (finding,) = found_in(tmp_path / "s", "same-weights")
    assert finding.level == "wrong"
    assert "ended in the same weights" in finding.text


def test_same_scores_of_two_trainings_are_flagged_by_the_scores(tmp_path: Path) -> None:
    scores = [0.1 + 0.01 * (index * 7 % 61) for index in range(60)]
    folder = tmp_path / "s"
    a = write_run(folder, job(seed=0), scores=scores)
    b = write_run(folder, job(seed=1, repeat=1), scores=scores)
    # AUROCs of both kinds must agree: give the second the first's maps' figures too.
    (b / "evaluation.json").write_text((a / "evaluation.json").read_text())
    import json

    result = json.loads((b / "result.json").read_text())
    result["evaluation"] = json.loads((a / "result.json").read_text())["evaluation"]
    (b / "result.json").write_text(json.dumps(result))
    _, (finding,) = found_in(folder, "same-weights")
    assert "same score, to the last digit" in finding.text


def test_two_engines_in_parity_are_not_flagged_as_the_same_weights(tmp_path: Path) -> None:
    write_run(tmp_path / "s", job(backend="horovod"), weights="e" * 64)
    write_run(tmp_path / "s", job(backend="ddp"), weights="e" * 64)
    assert found_in(tmp_path / "s", "same-weights")[1] == []


def test_untrained_weights_are_flagged(tmp_path: Path) -> None:
    import json

    folder = write_run(tmp_path / "s", job())
    result = json.loads((folder / "result.json").read_text())
    result["hashes"]["weights"] = result["hashes"]["init_weights"]
    (folder / "result.json").write_text(json.dumps(result))
    assert len(found_in(tmp_path / "s", "untrained")[1]) == 1


def test_super_linear_efficiency_gets_its_warning(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for repeat in range(2):
        write_run(folder, job(slots=1, repeat=repeat), step_s=1.0)
        write_run(folder, job(slots=2, repeat=repeat), step_s=0.4)
    comparison, (finding,) = found_in(folder, "super-linear")
    assert "above 100 %" in finding.text
    assert named_on_the_page(comparison, finding)


def test_failed_cell_is_shown_with_its_reason(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", repeats=1, steps=60)
    write_run(folder, job(backend="fsdp2"), fail="rank 1: RuntimeError: out of memory")
    comparison, (finding,) = found_in(folder, "failed")
    assert finding.text == "fsdp2-w2-fp32-s0-r0 failed: rank 1: RuntimeError: out of memory"
    page = render(comparison, Prices())
    assert "1 failed" in page
    assert "out of memory" in page


@pytest.mark.parametrize(
    ("code", "changes", "keywords"),
    [
        ("few-steps", {"steps": 25}, {}),
        ("few-repeats", {}, {}),
        ("profiled", {"profile": "torch"}, {}),
    ],
)
def test_thin_evidence_is_said(tmp_path: Path, code: str, changes: dict, keywords: dict) -> None:
    write_run(tmp_path / "s", job(**changes), **keywords)
    assert len(found_in(tmp_path / "s", code)[1]) == 1


def test_many_equal_complaints_become_one_line_with_the_names(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", repeats=3, steps=25)
    _, found = found_in(folder, "few-steps")
    assert len(found) == 2
    assert found[-1].text.startswith("The same (few-steps) of 11 other runs: ")


def test_pairs_that_ran_hours_apart_are_said(tmp_path: Path) -> None:
    import json

    folder = write_study(tmp_path / "s", repeats=1, workers=(2,), steps=60)
    assert found_in(folder, "apart")[1] == []
    path = next(folder.glob("horovod-*")) / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "started": "2026-11-24T15:00:00+00:00"}))
    _, (finding,) = found_in(folder, "apart")
    assert "started 5.0 h apart" in finding.text


def test_other_work_on_the_machine_is_said_beside_the_verdict(tmp_path: Path) -> None:
    busy = machine(load={"cores": 2.0, "foreign_cores": 0.8, "steal_cores": 0.0, "worst_cores": 1.0})
    write_run(tmp_path / "s", job(), hosts=[machine(), busy])
    comparison, (finding,) = found_in(tmp_path / "s", "foreign-load")
    assert finding.level == "warning"
    assert "other programs kept 0.80 of 2 cores busy" in finding.text
    assert any("0.80 of 2 cores" in sentence for sentence in verdict(comparison, [finding]))
    assert named_on_the_page(comparison, finding)


def test_a_quiet_machine_and_runs_that_are_known_to_share_it_are_not_complained_of(tmp_path: Path) -> None:
    write_run(tmp_path / "quiet", job(), hosts=[machine()])
    busy = machine(load={"cores": 2.0, "foreign_cores": 0.8, "steal_cores": 0.0, "worst_cores": 1.0})
    write_run(tmp_path / "shared", job(concurrent=2), hosts=[busy])
    assert found_in(tmp_path / "quiet", "foreign-load")[1] == []
    assert found_in(tmp_path / "shared", "foreign-load")[1] == []
