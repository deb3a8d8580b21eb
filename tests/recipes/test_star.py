"""STaR: what is kept, what becomes of the hint, where each loop starts from."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import pretrain, sft, star
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.types import NAN, Group, Key, Message, Problem, Rollout, SchoolError, Verdict

MODEL = pretrain.Model(
    hidden_size=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32, intermediate_size=32, max_seq_len=128
)
PROBLEM = Problem("p", (Message("user", "What is 3 + 4?"),), "7")


def said(*words: int, sample: int = 0, problem: Problem = PROBLEM, finish: Any = "stop") -> Rollout:
    asked = Rollout(problem, Key(0, "t", 0, 0, sample), (1, 2), (False, False), (NAN, NAN))
    return asked.append_sampled(words, [-0.1] * len(words), finish, 0)


def group(*pairs: tuple[Rollout, float | None]) -> Group:
    verdicts = tuple(Verdict(score, "" if score is not None else "clock") for _, score in pairs)
    return Group(pairs[0][0].problem, tuple(rollout for rollout, _ in pairs), verdicts)


def test_right_answers_are_kept_once_and_up_to_the_cap():
    found = group((said(3), 1.0), (said(3), 1.0), (said(4), 0.0), (said(5), 1.0), (said(6), 1.0), (said(7), None))
    assert [rollout.last_turn() for rollout in star.keep([found], max_per_problem=2)] == [(3,), (5,)]


def test_what_was_cut_off_is_never_kept():
    assert star.keep([group((said(3, finish="length"), 1.0))], max_per_problem=9) == []


def test_without_the_filter_wrong_answers_are_kept_too():
    assert len(star.keep([group((said(3), 0.0), (said(4), 1.0))], max_per_problem=9, everything=True)) == 2


def test_a_hint_is_the_answer_behind_the_question():
    assert star.with_hint(PROBLEM).messages == (Message("user", "What is 3 + 4? (7)"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose answer is 6 or 7, and a base that says one of them."""
    place = tmp_path_factory.mktemp("models")
    answers = [("seven", 7) if i % 3 else ("six", 6) for i in range(60)]
    rows = [{"question": f"Say {i}.", "answer": f"{word} #### {n}"} for i, (word, n) in enumerate(answers)]
    (place / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    book = pretrain.Config.of(task="school:facts", model=MODEL, vocab_size=300, steps=3, batch_size=4, seq_len=32)
    with Run.open(place / "text", book, "pretrain") as run:
        pretrain.pretrain(book, run)
    task = f"jsonl:{place / 'task.jsonl'}?holdout=none"
    lessons = sft.Config.of(
        model=str(place / "text"), task=task, steps=60, batch_size=32, **{"optimizer.learning_rate": 1e-2}
    )
    with Run.open(place / "base", lessons, "sft") as run:
        sft.sft(lessons, run)
    return place


def config(folder: Path, **changes: Any) -> star.Config:
    task = f"jsonl:{folder / 'task.jsonl'}?holdout=none"
    given: dict[str, Any] = {"model": str(folder / "base"), "task": task, "demos_task": task, "num_demos": 4}
    given |= {
        "loops": 2,
        "prompts_per_loop": 12,
        "sampling.max_new_tokens": 24,
        "updates_per_loop": 2,
        "batch_size": 8,
        "optimizer.learning_rate": 1e-3,
    }
    return star.Config.of(**{**given, **changes})


def train(place: Path, c: star.Config) -> Run:
    with Run.open(place, c, "star") as run:
        star.star(c, run)
    return run


def test_loops_ask_keep_and_account(folder: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(folder)).folder)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["trained_rollouts"] == 8  # each example with its hint and without
    alone = read_metrics(train(tmp_path / "alone", config(folder, rationalize=False, loops=1)).folder)
    assert alone[0]["trained_rollouts"] == 4  # without, where nothing is asked with a hint
    for row in rows[1:]:
        assert row["rollouts"] == 12
        assert row["trained_rollouts"] == 8 + row["kept"] + row.get("rationalized", 0)
        assert row.get("failed", 0) == 12 - row["kept"]
    said = [
        sum(b - a for line in path.read_text().splitlines() for a, b in json.loads(line)["sampled_spans"])
        for path in sorted((tmp_path / "run" / "rollouts").iterdir())
    ]
    assert all(row["sampled_tokens"] > own for row, own in zip(rows[1:], said, strict=True))  # attempts with hints too


def test_examples_that_were_changed_between_two_sittings_are_refused(folder: Path, tmp_path: Path):
    examples = tmp_path / "examples.jsonl"
    examples.write_bytes((folder / "task.jsonl").read_bytes())
    c = config(folder, demos_task=f"jsonl:{examples}?holdout=none", loops=1)
    train(tmp_path / "run", c)
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("finished", "stopped"))
    examples.write_text(examples.read_text().replace("Say 1.", "Say one."))
    with pytest.raises(SchoolError, match=r"examples\.jsonl has changed"):
        train(tmp_path / "run", c)


def studied(place: Path, c: star.Config, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool, list[Rollout]]]:
    """For each loop: the weights that it starts to learn from, whether Adam remembers anything, and what it learns."""
    seen, study = [], star.fine_tune

    def watched(c: Any, policy: Any, rollouts: Any, loop: int) -> Any:
        weights = {name: value.clone() for name, value in policy.decoder.state_dict().items()}
        seen.append((weights, bool(policy.learner.optimizer.state), list(rollouts)))
        return study(c, policy, rollouts, loop)

    monkeypatch.setattr(star, "fine_tune", watched)
    train(place, c)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("restart", [True, False])
def test_each_loop_starts_from_the_base_or_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
):
    loops = studied(tmp_path / "run", config(folder, restart_from_base=restart), monkeypatch)
    base = Policy.load(folder / "base").decoder.state_dict()
    for loop, (weights, remembers, _) in enumerate(loops):
        assert not remembers
        same = all(bool((weights[name] == base[name]).all()) for name in base)
        assert same is (restart or not loop)


@pytest.mark.parametrize("stays", [False, True])
def test_what_was_said_with_a_hint_is_learned_without_it_unless_it_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
):
    judge = star.grade

    def helped(*given: Any) -> list[Group]:
        """Nothing is right but what was said with a hint."""
        verdicts = {True: Verdict(1.0), False: Verdict(0.0)}
        return [
            Group(g.problem, g.rollouts, tuple(verdicts["(" in g.problem.messages[-1].content] for _ in g.rollouts))
            for g in judge(*given)
        ]

    monkeypatch.setattr(star, "grade", helped)
    loops = studied(tmp_path / "run", config(folder, num_demos=0, keep_hint=stays), monkeypatch)
    learned = [rollout for _, _, rollouts in loops for rollout in rollouts]
    tokenizer = Policy.load(folder / "base").conversation.tokenizer
    assert learned
    assert {"(" in r.problem.messages[-1].content for r in learned} == {stays}
    assert {"(" in tokenizer.decode(r.tokens[: r.turns[-1]]) for r in learned} == {stays}


def test_the_filter_can_be_left_out_and_updates_grow(folder: Path, tmp_path: Path):
    keys = {"num_demos": 0, "rationalize": False, "keep": "all", "updates_per_loop": 20, "updates_growth": 1.5}
    rows = read_metrics(train(tmp_path / "run", config(folder, **keys)).folder)
    assert [row["updates"] for row in rows if "updates" in row] == [round(20 * 1.5**loop) for loop in (1, 2)]
    assert any(row["kept"] > row["rollouts"] * row["reward"] for row in rows if "kept" in row)  # wrong ones too


def test_words_behind_another_prompt_have_no_log_probability_of_their_own():
    assert all(math.isnan(p) for p in said(3, 4).with_prompt((9, 9, 9)).logprob)


def test_the_hint_is_gone_from_what_is_learned_unless_it_stays(folder: Path):
    policy = Policy.load(folder / "base")
    asked = policy.conversation.prompt_rollout(star.with_hint(PROBLEM), Key(0, "t"))
    rollout = asked.append_sampled((5, 6), (-0.1, -0.2), "stop", 0)
    plain = star._without_hint(policy, rollout)
    assert plain.problem.messages == PROBLEM.messages
    assert plain.tokens == (*policy.conversation.prompt(PROBLEM.messages), 5, 6)
    assert plain.loss_mask[-2:] == (True, True)
    assert not any(plain.loss_mask[:-2])


def test_nothing_to_learn_from_leaves_the_model_as_it_is(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder, num_demos=0, **{"sampling.max_new_tokens": 1}, rationalize=False))
    assert all("trained_rollouts" not in row for row in read_metrics(run.folder))


def test_a_run_that_was_stopped_ends_in_the_same_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train(tmp_path / "whole", config(folder))
    study = star.fine_tune

    def tired(c: Any, policy: Any, rollouts: Any, loop: int) -> Any:
        if loop == 2:
            raise KeyboardInterrupt
        return study(c, policy, rollouts, loop)

    monkeypatch.setattr(star, "fine_tune", tired)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config(folder))
    monkeypatch.undo()
    again = train(tmp_path / "cut", config(folder))
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()
    one, other = (load_file(run.model / "model.safetensors") for run in (whole, again))
    assert all((one[name] == other[name]).all() for name in one)


def test_several_samples_at_temperature_0_are_refused(tmp_path: Path):
    c = star.Config.of(model="m", samples_per_prompt=32)
    with Run.open(tmp_path, c, "star") as run, pytest.raises(SchoolError, match="several samples at temperature 0"):
        star.star(c, run)
