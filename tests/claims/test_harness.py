"""Claims: steps are shared by what they are made from, the verdict follows the rule, pages say what did not hold."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny_claim
from schoolhouse.claims.harness import page, runner
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Outcome, Results, Scale, Step, verdict
from schoolhouse.cli.claims import claim as command
from schoolhouse.types import SchoolError

MODEL = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "max_seq_len": 128,
}
TASK = "school:facts"


def book(seed: int = 0, **changes: Any) -> Step:
    config = {"task": TASK, "seed": seed, "model": MODEL, "vocab_size": 300, "steps": 2, "batch_size": 4, "seq_len": 32}
    return Step("pretrain", {**config, **changes})


def lessons(model: Step) -> Step:
    return Step("sft", {"model": model, "task": TASK, "steps": 1, "batch_size": 4})


EXAM = Evaluation(task=TASK, problems=2, samples=2, max_new_tokens=4)


def a_claim(judge: Any = lambda results: [Check("must hold", "it", "1", True)]) -> Claim:
    def arms(scale: str, seed: int) -> Mapping[str, Arm]:
        return {
            "start": Arm(book(seed), {"exam": EXAM}),
            "taught": Arm(lessons(book(seed)), {"exam": EXAM}, "taught"),
        }

    return Claim("it", "Somebody 2020", "It helps.", "none", "none", "it holds", arms, judge, lambda r, p: None)


def results(**shares: list[list[float]]) -> Results:
    """Arms with the scores of two problems, one list a seed."""
    return Results(
        {
            name: {
                seed: Outcome(
                    {
                        "exam": {
                            "overall": {"pass_at_1": sum(scores) / len(scores)},
                            "records": [
                                {"problem": str(i), "scores": [1.0] * round(10 * s) + [0.0] * round(10 - 10 * s)}
                                for i, s in enumerate(scores)
                            ],
                        }
                    },
                    [],
                    [],
                    0,
                    0.0,
                )
                for seed, scores in enumerate(rows)
            }
            for name, rows in shares.items()
        }
    )


# --- names and reuse


def test_a_step_is_named_after_everything_it_is_made_from():
    assert runner.name_of(lessons(book())) == runner.name_of(lessons(book()))
    assert runner.name_of(lessons(book())) != runner.name_of(lessons(book(seed=1)))
    assert runner.name_of(book(steps=2)) != runner.name_of(book(steps=3))


def test_a_default_that_is_written_out_is_the_same_step():
    assert runner.name_of(book()) == runner.name_of(book(weight_decay=0.01))


def test_what_was_done_is_not_done_again(tmp_path: Path):
    run = runner.do(lessons(book()), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(before) == 2
    assert runner.do(lessons(book()), tmp_path) == run
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_a_step_that_other_code_made_is_used_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manifest = runner.do(book(), tmp_path) / "manifest.json"
    runner.do(book(), tmp_path)
    assert "other code" not in capsys.readouterr().err
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "code": "0" * 16}))
    runner.do(book(), tmp_path)
    assert f"{manifest.parent}: made by other code than this" in capsys.readouterr().err


def test_a_step_whose_start_was_made_anew_is_not_used(tmp_path: Path):
    run = runner.do(lessons(book()), tmp_path)
    start = runner.do(book(), tmp_path)
    runner.do(lessons(book()), tmp_path)
    other = runner.do(book(seed=1), tmp_path)
    for path in start.rglob("*.safetensors"):
        path.write_bytes(next(other.rglob("*.safetensors")).read_bytes())
    with pytest.raises(SchoolError, match=f"{run.name} began from other weights than .*{start.name} has now"):
        runner.do(lessons(book()), tmp_path)


def test_a_step_that_was_made_anew_is_measured_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arm = Arm(book(), {"exam": EXAM})
    runner.run_arm(arm, 0, tmp_path)
    (path,) = (tmp_path / "measures").glob("*.json")
    taken = json.loads(path.read_text())
    runner.run_arm(arm, 0, tmp_path)
    assert json.loads(path.read_text()) == taken
    assert "other code" not in capsys.readouterr().err
    path.write_text(json.dumps({**taken, "code": "0" * 16, "overall": "old"}))
    runner.run_arm(arm, 0, tmp_path)
    assert json.loads(path.read_text())["overall"] == "old"
    assert f"{path}: measured by other code than this" in capsys.readouterr().err
    path.write_text(json.dumps({**taken, "weights": "0" * 16, "overall": "old"}))
    runner.run_arm(arm, 0, tmp_path)
    assert json.loads(path.read_text())["overall"] == taken["overall"]


def test_a_claim_from_its_arms_to_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = runner.run_arms(a_claim(), 2, "tiny", tmp_path / "runs")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("it, ")]
    assert told == ["it, seed 0: start", "it, seed 0: taught", "it, seed 1: start", "it, seed 1: taught"]
    record = page.write(a_claim(), found, "tiny", tmp_path / "results")
    assert record == json.loads((tmp_path / "results" / "it.json").read_text())
    assert record["verdict"] == "PASS"
    assert record["seeds"] == [0, 1]
    assert record["arms"]["taught"]["by_seed"]["1"]["measured"]["exam"]["overall"]["pass_at_1"] is not None
    assert (tmp_path / "results" / "it.png").read_bytes().startswith(b"\x89PNG")
    assert "# it: PASS (2 of 3 seeds)\n" in (tmp_path / "results" / "it.md").read_text()
    table = (tmp_path / "results" / "README.md").read_text()
    assert "| [it](it.md) | It helps. (Somebody 2020) | 2 | 0 | PASS (2 of 3 seeds) |" in table
    with pytest.raises(
        SchoolError, match=r"it\.json holds a verdict of 2 seeds, which 1 would overwrite: give --seeds 2"
    ):
        page.guard(a_claim(), 1, "tiny", tmp_path / "results")
    page.guard(a_claim(), 2, "tiny", tmp_path / "results")


def test_a_claim_at_another_scale_stands_beside_the_tiny_one(tmp_path: Path):
    claim = replace(a_claim(), budgets={"gpu": "more of it"})
    found = runner.run_arms(claim, 1, "tiny", tmp_path / "runs")
    tiny, large = (page.write(claim, found, scale, tmp_path / "results") for scale in ("tiny", "gpu"))
    assert (tiny["budget"], large["budget"]) == (claim.budget, "more of it")
    assert page.redesigned(large, claim) == []
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == sorted(["README.md", *(f"{it}.{end}" for it in ("it", "it_gpu") for end in ("json", "md", "png"))])
    told = (tmp_path / "results" / "it_gpu.md").read_text()
    assert told.startswith("# it_gpu: PASS")
    assert "![it_gpu](it_gpu.png)" in told
    table = (tmp_path / "results" / "README.md").read_text()
    assert "| [it](it.md) |" in table
    assert "| [it_gpu](it_gpu.md) |" in table


@pytest.mark.parametrize("scale", ["tiny", "gpu"])
def test_the_first_claim_has_two_scales(scale: Scale):
    arms = runner.find("grpo").arms(scale, 0)
    names = {runner.name_of(arm.step) for arm in arms.values() if isinstance(arm.step, Step)}
    assert len(names) == len(arms)


def test_a_step_that_seeds_share_is_counted_once(tmp_path: Path):
    shared = replace(a_claim(), arms=lambda scale, seed: {"start": Arm(book(), {"exam": EXAM})})
    found = Results({"start": {seed: Outcome({}, [], [], 0, 60.0) for seed in range(3)}})
    assert page.write(replace(shared, draw=lambda r, p: None), found, "tiny", tmp_path)["seconds"] == 60.0
    own = replace(shared, arms=lambda scale, seed: {"start": Arm(book(seed), {"exam": EXAM})})
    assert page.write(own, found, "tiny", tmp_path)["seconds"] == 180.0


def test_a_page_knows_when_its_claim_has_been_redesigned_since(tmp_path: Path):
    claim = a_claim()
    record = page.write(claim, runner.run_arms(claim, 1, "tiny", tmp_path), "tiny", tmp_path / "results")
    assert page.redesigned(record, claim) == []
    assert page.redesigned(record, replace(claim, rule="another")) == ["rule"]

    def longer(scale: str, seed: int) -> Mapping[str, Arm]:
        return {"start": Arm(book(seed, steps=3), {"exam": EXAM}), "taught": claim.arms("tiny", seed)["taught"]}

    def otherwise(scale: str, seed: int) -> Mapping[str, Arm]:
        shorter = {"exam": EXAM.model_copy(update={"prompts_per_step": 1})}
        return {"start": Arm(book(seed), shorter), "taught": claim.arms("tiny", seed)["taught"]}

    def deeper(scale: str, seed: int) -> Mapping[str, Arm]:
        start, exam = claim.arms("tiny", seed)["start"], {"exam": EXAM}
        return {"start": start, "taught": Arm(lessons(book(seed, steps=3)), exam, "taught")}

    for arms in (longer, otherwise, deeper):
        assert page.redesigned(record, replace(claim, arms=arms)) == ["arms"]
    known = {key: value for key, value in record.items() if key != "design"}  # as records were before
    assert page.redesigned(known, claim) == []
    assert page.redesigned(known, replace(claim, arms=longer)) == ["arms"]


def test_only_the_arms_that_are_asked_for_are_run(tmp_path: Path):
    found = runner.run_arms(a_claim(), 1, "tiny", tmp_path, ["start"])
    assert [*found.arms] == ["start"]
    with pytest.raises(SchoolError, match="did you mean `taught`"):
        runner.run_arms(a_claim(), 1, "tiny", tmp_path, ["tought"])


def test_seeds_side_by_side_give_what_they_give_one_after_the_other(tmp_path: Path):
    claim = tiny_claim.CLAIM
    found, again = (runner.run_arms(claim, 2, "tiny", tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    assert [*again.arms] == [*found.arms] == ["start"]
    for seed in (0, 1):
        assert again.arms["start"][seed].metrics == found.arms["start"][seed].metrics


def test_a_finished_folder_may_be_named_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    place = runner.do(lessons(book()), Path("claims"))
    written = (place / "metrics.jsonl").stat().st_mtime_ns
    assert runner.do(lessons(book()), tmp_path / "claims") == tmp_path / place
    assert (place / "metrics.jsonl").stat().st_mtime_ns == written


def test_a_step_is_another_one_when_its_task_file_changed(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    names = []
    for answer in ("1", "2"):
        path.write_text(json.dumps({"question": "q", "answer": f"so #### {answer}"}) + "\n")
        names.append(runner.name_of(book(task=f"jsonl:{path}?holdout=none")))
    assert names[0] != names[1]


def test_a_step_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = book()
    place = tmp_path / "steps" / runner.name_of(step)
    place.mkdir(parents=True)
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", hold, place / "lock"], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout
        other.stdout.readline()
        looks: list[float] = []

        def wait(seconds: float) -> None:
            looks.append(seconds)
            other.communicate("\n")

        monkeypatch.setattr(runner.time, "sleep", wait)
        assert runner.do(step, tmp_path) == place
    assert looks == [runner.PATIENCE]


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


def test_a_rule_that_could_not_fail_is_refused():
    with pytest.raises(SchoolError, match="must demand something"):
        verdict([replace(GOOD, kind="reported")])


def test_differences_are_paired_by_problem_and_seed():
    found = results(a=[[0.0, 0.5], [0.2, 0.5]], b=[[0.5, 1.0], [0.7, 1.0]])
    assert found.gains("a", "b") == pytest.approx([0.5, 0.5])
    assert found.difference("a", "b") == pytest.approx((0.5, 0.5, 0.5))
    assert found.interval("a").value == pytest.approx(0.3)


def test_a_course_asks_one_set_of_problems_from_the_start_to_the_end():
    """Exams in training ask the first problem alone, those before and after it two; the first is the easier one."""
    asked = results(start=[[0.5, 0.1]], taught=[[0.9, 0.1]])
    lines = [{"step": 0}, {"step": 1, "exam": {"prompts_per_step": 1, "overall": {"pass_at_1": 0.7}}}]
    taught = replace(asked.arms["taught"][0], metrics=lines)
    found = Results({"start": asked.arms["start"], "taught": {0: taught}})
    assert [point.value for point in found.exams("taught", "start")[0]] == pytest.approx([0.5, 0.7, 0.9])
    assert [point.value for point in found.exams("taught")[0]] == pytest.approx([0.7, 0.9])
    assert found.areas("taught") == pytest.approx([(0.6 + 0.8) / 2])
    whole = Results({"start": asked.arms["start"], "taught": asked.arms["taught"]})  # no exam in training: all problems
    assert [point.value for point in whole.exams("taught", "start")[0]] == pytest.approx([0.3, 0.5])


def test_a_problem_that_could_not_be_judged_once_is_left_out_of_differences():
    found = results(before=[[0.0, 0.5]], after=[[1.0, 1.0]])
    found.arms["after"][0].measured["exam"]["records"][1]["scores"] = [None]
    assert found.difference("before", "after").value == 1.0


def test_what_could_not_be_measured_holds_for_no_rule():
    found = results(start=[[0.5, 0.5]])
    found.arms["start"][0].measured["exam"]["overall"]["pass_at_1"] = None
    (value,) = found.each("start")
    assert not value > 0
    assert not value <= 0
    assert min([0.5, value, 0.6]) >= 0.5  # why a check looks for itself
    assert not Check("must hold", "all are .5", "0.500 nan 0.600", True).holds
    assert Check("reported", "it", "nan", True).holds
    assert Check("must hold", "a", "a banana", True).holds


def test_seeds_are_those_that_every_arm_has():
    assert results(a=[[0.0], [0.5]], b=[[1.0]]).seeds == [0]


def test_the_page_says_what_did_not_hold(tmp_path: Path):
    claim = a_claim(lambda r: [GOOD, BAD])
    (tmp_path / "results").mkdir()
    found = runner.run_arms(claim, 1, "tiny", tmp_path / "runs")
    page.write(claim, found, "tiny", tmp_path / "results")
    text = (tmp_path / "results" / "it.md").read_text()
    assert "# it: FAIL" in text
    assert "| must hold | b | 0 | DOES NOT HOLD |" in text


# --- the command


def test_every_claim_of_the_package_can_be_listed_and_planned(capsys: pytest.CaptureFixture[str]):
    command(["list"])
    told = capsys.readouterr().out
    for name in runner.known():
        assert f"{name}: " in told
        arms = runner.find(name).arms("tiny", 0)
        assert runner.find(name).id == name
        assert all(runner.name_of(arm.step) for arm in arms.values() if isinstance(arm.step, Step))


def test_a_claim_whose_file_is_not_here_is_listed_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SCHOOLHOUSE_GAME24", str(tmp_path / "none.csv"))
    command(["list"])
    told = capsys.readouterr().out
    assert "none.csv is not there" in told
    assert "weighted_vote: " in told


def test_an_unknown_claim_is_refused_with_the_nearest():
    with pytest.raises(SchoolError, match="did you mean `grpo`"):
        command(["run", "gprpo"])


def test_a_report_of_nothing_says_how_to_make_results(tmp_path: Path):
    with pytest.raises(SchoolError, match="school claim run NAME"):
        command(["report", "--results", str(tmp_path)])
