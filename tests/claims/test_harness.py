"""Claims: steps are shared by what they are made from, the verdict follows the rule, pages show what did not hold."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny_claim
from schoolhouse.claims.harness import page, runner
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Outcome, Results, Scale, Step, verdict
from schoolhouse.cli.claims import claim as claim_command
from schoolhouse.types import SchoolError

TASK = "school:facts"
EVALUATION = Evaluation(task=TASK, problems=2, samples=2, max_new_tokens=4)


def pretrain_step(seed: int = 0, **changes: Any) -> Step:
    config = {"task": TASK, "seed": seed, "model": tiny_claim.MODEL, "vocab_size": 300, "steps": 2, "batch_size": 4}
    return Step("pretrain", {**config, "seq_len": 32, **changes})


def sft_step(model: Step) -> Step:
    return Step("sft", {"model": model, "task": TASK, "steps": 1, "batch_size": 4})


def make_claim(check: Callable[[Results], Sequence[Check]] = lambda _: [Check("must hold", "it", "1", True)]) -> Claim:
    def arms(scale: str, seed: int) -> Mapping[str, Arm]:
        return {
            "start": Arm(pretrain_step(seed), {"eval": EVALUATION}),
            "tuned": Arm(sft_step(pretrain_step(seed)), {"eval": EVALUATION}, "fine-tuned"),
        }

    return Claim("it", "Author 2020", "It helps.", "none", "none", "it holds", arms, check, lambda r, p: None)


def make_results(**accuracies: list[list[float]]) -> Results:
    """Arms with the accuracies of two problems, one list a seed."""
    return Results(
        {
            arm: {seed: make_outcome(per_problem) for seed, per_problem in enumerate(seeds)}
            for arm, seeds in accuracies.items()
        }
    )


def make_outcome(per_problem: list[float]) -> Outcome:
    records = [
        {"problem": str(i), "rewards": [1.0] * round(10 * accuracy) + [0.0] * round(10 - 10 * accuracy)}
        for i, accuracy in enumerate(per_problem)
    ]
    overall = {"pass_at_1": sum(per_problem) / len(per_problem)}
    return Outcome({"eval": {"overall": overall, "records": records}}, [], [], 0, 0.0)


# --- names and reuse


def test_a_step_is_named_after_everything_it_is_made_from():
    assert runner.step_name(sft_step(pretrain_step())) == runner.step_name(sft_step(pretrain_step()))
    assert runner.step_name(sft_step(pretrain_step())) != runner.step_name(sft_step(pretrain_step(seed=1)))
    assert runner.step_name(pretrain_step(steps=2)) != runner.step_name(pretrain_step(steps=3))


def test_a_default_that_is_written_out_is_the_same_step():
    written_out = pretrain_step(**{"optimizer.weight_decay": 0.01})
    assert runner.step_name(pretrain_step()) == runner.step_name(written_out)
    assert runner.step_name(pretrain_step()) != runner.step_name(pretrain_step(**{"optimizer.weight_decay": 0.02}))


def test_the_folder_of_a_recipe_in_a_module_has_the_module_s_own_name():
    step = Step("schoolhouse.claims.harness.noisy_grpo", {"model": pretrain_step()})
    assert runner.step_name(step).startswith("noisy_grpo-")


def test_a_finished_step_is_not_trained_again(tmp_path: Path):
    run = runner.run_step(sft_step(pretrain_step()), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(before) == 2
    assert runner.run_step(sft_step(pretrain_step()), tmp_path) == run
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_a_step_of_other_code_is_used_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manifest = runner.run_step(pretrain_step(), tmp_path) / "manifest.json"
    runner.run_step(pretrain_step(), tmp_path)
    assert "other code" not in capsys.readouterr().err
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "code": "0" * 16}))
    runner.run_step(pretrain_step(), tmp_path)
    assert f"{manifest.parent} was made by a different version of the code" in capsys.readouterr().err


def test_a_step_whose_start_has_other_weights_is_refused(tmp_path: Path):
    run = runner.run_step(sft_step(pretrain_step()), tmp_path)
    start = runner.run_step(pretrain_step(), tmp_path)
    runner.run_step(sft_step(pretrain_step()), tmp_path)
    other = runner.run_step(pretrain_step(seed=1), tmp_path)
    for path in start.rglob("*.safetensors"):
        path.write_bytes(next(other.rglob("*.safetensors")).read_bytes())
    with pytest.raises(SchoolError, match=f"weights of .*{start.name} have changed since .*{run.name} was trained"):
        runner.run_step(sft_step(pretrain_step()), tmp_path)


def test_a_step_with_other_weights_is_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arm = Arm(pretrain_step(), {"eval": EVALUATION})
    runner.run_arm(arm, 0, tmp_path)
    (path,) = (tmp_path / "measures").glob("*.json")
    stored = json.loads(path.read_text())
    runner.run_arm(arm, 0, tmp_path)
    assert json.loads(path.read_text()) == stored
    assert "other code" not in capsys.readouterr().err
    path.write_text(json.dumps({**stored, "code": "0" * 16, "overall": "old"}))
    runner.run_arm(arm, 0, tmp_path)
    assert json.loads(path.read_text())["overall"] == "old"
    assert f"{path} was measured by a different version of the code" in capsys.readouterr().err
    path.write_text(json.dumps({**stored, "weights": "0" * 16, "overall": "old"}))
    runner.run_arm(arm, 0, tmp_path)
    assert json.loads(path.read_text())["overall"] == stored["overall"]


def test_a_claim_from_its_arms_to_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = runner.run_arms(make_claim(), 2, "tiny", tmp_path / "runs")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("it, ")]
    assert printed == ["it, seed 0: start", "it, seed 0: tuned", "it, seed 1: start", "it, seed 1: tuned"]
    record = page.write_record(make_claim(), results, "tiny", tmp_path / "results")
    assert record == json.loads((tmp_path / "results" / "it.json").read_text())
    assert record["verdict"] == "PASS"
    assert record["seeds"] == [0, 1]
    evaluation = record["arms"]["tuned"]["by_seed"]["1"]["measured"]["eval"]
    assert evaluation["overall"]["pass_at_1"] is not None
    assert not set(evaluation) & {"records", "inputs"}
    assert (tmp_path / "results" / "it.png").read_bytes().startswith(b"\x89PNG")
    assert "# it: PASS (2 of 3 seeds)\n" in (tmp_path / "results" / "it.md").read_text()
    table = (tmp_path / "results" / "README.md").read_text()
    assert "| [it](it.md) | It helps. (Author 2020) | 2 | 0 | PASS (2 of 3 seeds) |" in table
    with pytest.raises(
        SchoolError, match=r"it\.json has a verdict with 2 seeds, and a run with 1 would overwrite it; give --seeds 2"
    ):
        page.check_overwrite(make_claim(), 1, "tiny", tmp_path / "results")
    page.check_overwrite(make_claim(), 2, "tiny", tmp_path / "results")


def test_a_claim_at_another_scale_stands_beside_the_tiny_one(tmp_path: Path):
    claim = replace(make_claim(), budget_by_scale={"gpu": "more of it"})
    results = runner.run_arms(claim, 1, "tiny", tmp_path / "runs")
    tiny, large = (page.write_record(claim, results, scale, tmp_path / "results") for scale in ("tiny", "gpu"))
    assert (tiny["budget"], large["budget"]) == (claim.budget, "more of it")
    assert page.design_changes(large, claim) == []
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    stems = ("it", "it_gpu")
    assert names == sorted(["README.md", *(f"{stem}.{end}" for stem in stems for end in ("json", "md", "png"))])
    text = (tmp_path / "results" / "it_gpu.md").read_text()
    assert text.startswith("# it_gpu: PASS")
    assert "![it_gpu](it_gpu.png)" in text
    table = (tmp_path / "results" / "README.md").read_text()
    assert "| [it](it.md) |" in table
    assert "| [it_gpu](it_gpu.md) |" in table


@pytest.mark.parametrize("scale", ["tiny", "gpu"])
def test_all_arms_of_the_first_claim_differ(scale: Scale):
    arms = runner.load_claim("grpo").arms(scale, 0)
    names = {runner.step_name(arm.step) for arm in arms.values() if isinstance(arm.step, Step)}
    assert len(names) == len(arms)


def test_the_seconds_of_a_step_that_seeds_share_count_once(tmp_path: Path):
    def shared(scale: str, seed: int) -> Mapping[str, Arm]:
        return {"start": Arm(pretrain_step(), {"eval": EVALUATION})}

    def own(scale: str, seed: int) -> Mapping[str, Arm]:
        return {"start": Arm(pretrain_step(seed), {"eval": EVALUATION})}

    results = Results({"start": {seed: Outcome({}, [], [], 0, 60.0) for seed in range(3)}})
    assert page.write_record(replace(make_claim(), arms=shared), results, "tiny", tmp_path)["seconds"] == 60.0
    assert page.write_record(replace(make_claim(), arms=own), results, "tiny", tmp_path)["seconds"] == 180.0


def test_a_page_names_what_changed_in_its_claim_since_the_count(tmp_path: Path):
    claim = make_claim()
    record = page.write_record(claim, runner.run_arms(claim, 1, "tiny", tmp_path), "tiny", tmp_path / "results")
    assert page.design_changes(record, claim) == []
    assert page.design_changes(record, replace(claim, rule="another")) == ["rule"]

    def longer_start(scale: str, seed: int) -> Mapping[str, Arm]:
        longer = Arm(pretrain_step(seed, steps=3), {"eval": EVALUATION})
        return {"start": longer, "tuned": claim.arms("tiny", seed)["tuned"]}

    def other_measure(scale: str, seed: int) -> Mapping[str, Arm]:
        fewer = {"eval": Evaluation(task=TASK, problems=1, samples=2, max_new_tokens=4)}
        return {"start": Arm(pretrain_step(seed), fewer), "tuned": claim.arms("tiny", seed)["tuned"]}

    def other_start_of_the_second_arm(scale: str, seed: int) -> Mapping[str, Arm]:
        tuned = Arm(sft_step(pretrain_step(seed, steps=3)), {"eval": EVALUATION}, "fine-tuned")
        return {"start": claim.arms("tiny", seed)["start"], "tuned": tuned}

    for arms in (longer_start, other_measure, other_start_of_the_second_arm):
        assert page.design_changes(record, replace(claim, arms=arms)) == ["arms"]


def test_only_the_named_arms_are_run(tmp_path: Path):
    results = runner.run_arms(make_claim(), 1, "tiny", tmp_path, ["start"])
    assert [*results.arms] == ["start"]
    with pytest.raises(SchoolError, match="did you mean `tuned`"):
        runner.run_arms(make_claim(), 1, "tiny", tmp_path, ["tunde"])


def test_parallel_seeds_give_the_same_results_as_one_after_the_other(tmp_path: Path):
    serial, parallel = (
        runner.run_arms(tiny_claim.CLAIM, 2, "tiny", tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2)
    )
    assert [*parallel.arms] == [*serial.arms] == ["start"]
    for seed in (0, 1):
        assert parallel.arms["start"][seed].metrics == serial.arms["start"][seed].metrics


def test_a_finished_step_is_found_by_another_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_folder = runner.run_step(sft_step(pretrain_step()), Path("claims"))
    written = (run_folder / "metrics.jsonl").stat().st_mtime_ns
    assert runner.run_step(sft_step(pretrain_step()), tmp_path / "claims") == tmp_path / run_folder
    assert (run_folder / "metrics.jsonl").stat().st_mtime_ns == written


def test_a_step_has_another_name_after_its_task_file_changed(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    names = []
    for answer in ("1", "2"):
        path.write_text(json.dumps({"question": "q", "answer": f"so #### {answer}"}) + "\n")
        names.append(runner.step_name(pretrain_step(task=f"jsonl:{path}?holdout=none")))
    assert names[0] != names[1]


def test_a_step_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = pretrain_step()
    run_folder = tmp_path / "steps" / runner.step_name(step)
    run_folder.mkdir(parents=True)
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", hold, run_folder / "lock"], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout
        holder.stdout.readline()
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            holder.communicate("\n")

        monkeypatch.setattr(runner.time, "sleep", wait)
        assert runner.run_step(step, tmp_path) == run_folder
    assert waits == [runner.POLL_SECONDS]


# --- the verdict

GOOD, BAD = Check("must hold", "a", "1", True), Check("must hold", "b", "0", False)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([GOOD], "PASS"),
        ([GOOD, BAD], "FAIL"),
        ([GOOD, replace(BAD, kind="must fail")], "FAIL"),
        ([GOOD, replace(BAD, kind="premise")], "INVALID"),
        ([BAD, replace(BAD, kind="premise")], "INVALID"),
        ([GOOD, replace(BAD, kind="reported")], "PASS"),
    ],
)
def test_the_verdict(checks: list[Check], expected: str):
    assert verdict(checks) == expected


def test_a_rule_without_a_requirement_is_refused():
    with pytest.raises(SchoolError, match="has no requirement"):
        verdict([replace(GOOD, kind="reported")])


def test_differences_are_paired_by_problem_and_seed():
    results = make_results(a=[[0.0, 0.5], [0.2, 0.5]], b=[[0.5, 1.0], [0.7, 1.0]])
    assert results.gains("a", "b") == pytest.approx([0.5, 0.5])
    assert results.difference("a", "b") == pytest.approx((0.5, 0.5, 0.5))
    assert results.interval("a").value == pytest.approx(0.3)


def test_a_curve_is_about_the_same_problems_from_the_start_to_the_end():
    """Evaluations in training have the first problem alone, those before and after it two; the first is easier."""
    two_arms = make_results(start=[[0.5, 0.1]], tuned=[[0.9, 0.1]])
    metrics = [{"step": 0}, {"step": 1, "eval": {"problems": 1, "overall": {"pass_at_1": 0.7}}}]
    tuned = replace(two_arms.arms["tuned"][0], metrics=metrics)
    results = Results({"start": two_arms.arms["start"], "tuned": {0: tuned}})
    assert [point.value for point in results.eval_curves("tuned", "start")[0]] == pytest.approx([0.5, 0.7, 0.9])
    assert [point.value for point in results.eval_curves("tuned")[0]] == pytest.approx([0.7, 0.9])
    assert results.areas("tuned") == pytest.approx([(0.6 + 0.8) / 2])
    values = [point.value for point in two_arms.eval_curves("tuned", "start")[0]]
    assert values == pytest.approx([0.3, 0.5])  # no evaluation in training: all problems


def test_the_seconds_of_evaluations_in_training_are_left_out_of_curves():
    metrics = [{"step": 0, "sampled_tokens": 5}, {"step": 1, "eval": {"problems": 2, "overall": {"pass_at_1": 0.7}}}]
    times = [{"step": 0, "seconds": 10.0}, {"step": 1, "seconds": 25.0, "eval": 4.0}]
    outcome = replace(make_outcome([0.9, 0.9]), metrics=metrics, times=times, sampled_tokens=9, seconds=25.0)
    (points,) = Results({"tuned": {0: outcome}}).eval_curves("tuned")
    assert [tuple(point) for point in points] == [(1, 5, 10.0, 0.7), (2, 9, 21.0, pytest.approx(0.9))]


def test_a_problem_without_a_graded_answer_is_left_out_of_differences():
    results = make_results(before=[[0.0, 0.5]], after=[[1.0, 1.0]])
    results.arms["after"][0].measured["eval"]["records"][1]["rewards"] = [None]
    assert results.difference("before", "after").value == 1.0


def test_no_rule_passes_with_a_missing_measurement():
    results = make_results(start=[[0.5, 0.5]])
    results.arms["start"][0].measured["eval"]["overall"]["pass_at_1"] = None
    (value,) = results.by_seed("start")
    assert not value > 0
    assert not value <= 0
    assert min([0.5, value, 0.6]) >= 0.5  # so a check has to look at its numbers itself
    assert not Check("must hold", "all are .5", "0.500 nan 0.600", True).holds
    assert Check("reported", "it", "nan", True).holds
    assert Check("must hold", "a", "a banana", True).holds


def test_seeds_are_those_that_every_arm_has():
    assert make_results(a=[[0.0], [0.5]], b=[[1.0]]).seeds == [0]


# --- the page


def render(claim: Claim, folder: Path) -> str:
    """The page of a claim after one seed."""
    record = page.write_record(claim, runner.run_arms(claim, 1, "tiny", folder / "runs"), "tiny", folder / "results")
    return page.render_page(record, claim)


def test_the_page_shows_what_did_not_hold(tmp_path: Path):
    claim = replace(make_claim(lambda _: [GOOD, BAD]), failures=("Because of b.",), notes=("A pilot.",))
    text = render(claim, tmp_path)
    assert "# it: FAIL" in text
    assert "| must hold | a | 1 | passes |" in text
    assert "| must hold | b | 0 | FAILS |" in text
    parts = ["Claim: It helps.", "Rule: it holds.", "## Result", "![it](it.png)", "## What did not hold"]
    places = [text.index(part) for part in (*parts, "Because of b.", "## Notes", "A pilot.")]
    assert places == sorted(places)


def test_a_failure_without_an_explanation_points_to_its_lines(tmp_path: Path):
    assert "See the checks that are marked FAILS." in render(make_claim(lambda _: [GOOD, BAD]), tmp_path)


def test_an_explanation_is_not_shown_where_every_line_passes(tmp_path: Path):
    text = render(replace(make_claim(), failures=("Because of b.",)), tmp_path)
    assert "Every check passes." in text
    assert "Because of b." not in text


def test_a_note_on_the_figure_stands_below_it(tmp_path: Path):
    claim = make_claim()
    record = page.write_record(claim, runner.run_arms(claim, 1, "tiny", tmp_path), "tiny", tmp_path / "results")
    text = page.render_page({**record, "figure_note": "Labels of an earlier version."}, claim)
    assert "![it](it.png)\n\nLabels of an earlier version.\n\nIn a row" in text
    assert "Labels of" not in page.render_page(record, claim)


# --- the command


def test_every_claim_is_listed_and_planned(capsys: pytest.CaptureFixture[str]):
    claim_command(["list"])
    printed = capsys.readouterr().out
    for name in runner.claim_names():
        assert f"{name}: " in printed
        claim = runner.load_claim(name)
        assert claim.id == name
        if name in printed.partition("does not exist")[0].rpartition("\n")[2]:
            continue


def test_a_claim_with_a_missing_file_is_listed_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SCHOOLHOUSE_GAME24", str(tmp_path / "none.csv"))
    claim_command(["list"])
    printed = capsys.readouterr().out
    assert "none.csv; download 24.csv" in printed
    assert "weighted_vote: " in printed


def test_an_unknown_claim_is_refused_with_the_nearest():
    with pytest.raises(SchoolError, match="did you mean `grpo`"):
        claim_command(["run", "gprpo"])


def test_a_report_without_results_shows_how_to_make_them(tmp_path: Path):
    with pytest.raises(SchoolError, match="school claim run NAME"):
        claim_command(["report", "--results", str(tmp_path)])
