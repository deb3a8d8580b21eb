"""The Game of 24: its solver, its file, its grades, and labels of single thoughts."""

import re
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.game24 import Game24, can_make_target, find_solution, format_numbers, next_moves, parse_thought
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.school.countdown import evaluate_expression
from schoolhouse.types import Completion, Problem, SchoolError

PUZZLES = "Rank,Puzzles,AMT (s)\n1,1 1 4 6,4.4\n2,1 1 11 11,4.4\n3,4 9 10 13,5.0\n4,3 3 8 8,9.9\n"
REAL = Path(__file__).parents[3] / "shared" / "data" / "game24.csv"


def numbers(*values: int) -> tuple[Fraction, ...]:
    return tuple(sorted(map(Fraction, values)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "puzzles.csv").write_text(PUZZLES)
    return tmp_path / "puzzles.csv"


@pytest.fixture
def game(path: Path) -> Game24:
    return Game24(path, holdout="3-4", demos="solve=1,next=1,value=1,vote=1")


def by_numbers(game: Game24, text: str) -> Problem:
    return next(problem for problem in game.eval_problems() if problem.id == f"game24:{text}")


# --- the solver


@pytest.mark.parametrize(
    "left, reachable", [((4, 9, 10, 13), True), ((3, 3, 8, 8), True), ((1, 1, 1, 1), False), ((24,), True)]
)
def test_the_solver_knows_which_numbers_can_make_24(left: tuple[int, ...], reachable: bool):
    assert can_make_target(numbers(*left)) is reachable


@given(st.lists(st.integers(1, 13), min_size=4, max_size=4))
def test_a_solution_is_an_expression_of_all_numbers_worth_24(left: list[int]):
    if can_make_target(numbers(*left)):
        moves, text = find_solution(numbers(*left), Random(0))
        value, used = evaluate_expression(text)
        assert (value, sorted(used), len(moves)) == (24, sorted(left), 3)


def test_no_solution_is_an_error():
    with pytest.raises(ValueError, match="1 1 1 1 cannot make 24"):
        find_solution(numbers(1, 1, 1, 1), Random(0))


def test_moves_join_two_numbers_and_keep_the_rest():
    moves = {str(move) for move in next_moves(numbers(2, 6, 12))}
    assert {"6*2=12 (12 12)", "12-6=6 (2 6)", "2/6=(1/3) (1/3 12)", "6/2=3 (3 12)"} <= moves
    assert len(moves) == 15


@given(st.lists(st.integers(0, 13), min_size=2, max_size=4))
def test_every_move_parses_as_itself(left: list[int]):
    for move in next_moves(numbers(*left)):
        assert parse_thought(str(move)) == (move.a, move.sign, move.b, move.result, move.left)


@pytest.mark.parametrize(
    "text", ["", "13-9=4", "13-9 (4 4)", "13-9=x (4)", "12/1/2=24 (24)", "1+1=(1/0) (1)", "a+b=c (1)"]
)
def test_text_that_is_no_thought_is_not_parsed(text: str):
    assert parse_thought(text) is None


# --- the task


def test_held_out_puzzles_are_never_trained_on(game: Game24):
    held_out = {problem.id for problem in game.eval_problems()}
    assert held_out == {"game24:4 9 10 13", "game24:3 3 8 8"}
    assert not held_out & {problem.id for problem in game.train_problems(0, 50)}


def test_training_problems_are_a_function_of_seed_and_step(game: Game24, path: Path):
    assert game.train_problems(3, 20) == Game24(path, holdout="3-4").train_problems(3, 20)
    assert game.train_problems(3, 20)[:5] == game.train_problems(3, 5)


@pytest.mark.parametrize(
    "answer, reward, reason",
    [
        ("(10-4)*(13-9)", 1.0, ""),
        ("(10-4)*(13-9)=24", 1.0, ""),
        ("24=(10-4)*(13-9)", 1.0, ""),
        (r"(10-4)\times(13−9)", 1.0, ""),
        ("10*13-4", 0.0, "other numbers"),
        ("4+9+10+13", 0.0, "makes 36"),
        ("24", 0.0, "other numbers"),
        ("(10-4", 0.0, "not an expression"),
    ],
)
def test_an_answer_uses_each_number_once_and_makes_24(game: Game24, answer: str, reward: float, reason: str):
    verdict = game.grade(by_numbers(game, "4 9 10 13"), Completion("", f"\\boxed{{{answer}}}"))
    assert verdict.reward == reward
    assert verdict.reason.startswith(reason)


def test_it_passes_its_audit(game: Game24):
    assert audit_task(game).passed


def test_demonstrations_are_of_the_requested_kinds_and_correct(game: Game24):
    demos = game.demonstrations(0, 300)
    assert {demo.style for demo in demos} == {"solve", "next", "value", "vote"}
    for demo in demos:
        if demo.style == "solve":
            assert game.grade(demo.problem, Completion(demo.thought, demo.answer)).reward == 1.0
            assert game.step_labels(demo.problem, (demo.thought or "").split("\n")) == [1, 1, 1]
        elif demo.style == "next":
            left = tuple(sorted(map(Fraction, re.findall(r"[\d/]+", demo.problem.messages[0].content))))
            assert game.parse_proposals(demo.answer) == list(map(str, next_moves(left)))
        elif demo.style == "vote":
            _, *lines = demo.problem.messages[0].content.splitlines()
            chosen = game.parse_vote(demo.answer)
            can = [can_make_target(tuple(map(Fraction, line.partition(": ")[2].split()))) for line in lines]
            assert can == [i == chosen for i in range(len(lines))]
            assert len(lines) <= 8
        else:
            left = numbers_in(demo.problem.messages[0].content)
            assert demo.answer == ("sure" if can_make_target(left) else "impossible")


def numbers_in(question: str) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, question.removeprefix("Can ").removesuffix(" make 24?").split()))


def test_thoughts_are_labelled_one_by_one(game: Game24):
    problem = by_numbers(game, "4 9 10 13")
    assert game.step_labels(problem, ["13-9=4 (4 4 10)", "10-4=6 (4 6)", "6*4=24 (24)"]) == [1, 1, 1]
    assert game.step_labels(problem, ["13+10=23 (4 9 23)", "23+9=32 (4 32)"]) == [-1, -1]
    assert game.step_labels(problem, ["13-9=5 (4 5 10)", "10-4=6 (5 6)"]) == [-1, -1]
    assert game.step_labels(problem, ["13-9=4 (4 10)"]) == [-1]
    assert game.step_labels(problem, ["9+9=18 (4 13 18)"]) == [-1]
    assert game.step_labels(problem, ["13/0=1 (1 4 9)"]) == [-1]


def test_prompts_about_thoughts_name_the_numbers_left(game: Game24):
    problem = by_numbers(game, "4 9 10 13")
    prompts = [game.propose_prompt(problem, []), game.value_prompt(problem, ["13-9=4 (4 4 10)"])]
    texts = [prompt.messages[0].content for prompt in prompts if prompt]
    assert texts == ["What may be done with 4 9 10 13?", "Can 4 4 10 make 24?"]
    assert game.propose_prompt(problem, ["6*4=24 (24)"]) is None
    assert game.value_prompt(problem, ["nonsense"]) is None


def test_answers_about_thoughts_are_parsed(game: Game24):
    assert game.parse_proposals("13-9=4 (4 4 10)\nwell\n10-4=6 (6 9 13)") == ["13-9=4 (4 4 10)", "10-4=6 (6 9 13)"]
    assert [game.parse_value(word) for word in ("sure", " likely", "impossible", "maybe")] == [20.0, 1.0, 0.001, None]


# --- bad input


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", ":1: the first line must name the columns `Rank` and `Puzzles`"),
        ("Rank,Puzzles\nx,1 1 4 6\n", ":2: `Rank` must be a whole number"),
        ("Rank,Puzzles\n1,1 1 4\n", ":2: 1 1 4 is not a puzzle"),
        ("Rank,Puzzles\n1,1 1 1 1\n", ":2: 1 1 1 1 is not a puzzle"),
        ("Rank,Puzzles\n1\n", ":2: `Rank` must be a whole number"),
        ("Rank,Puzzles\n1,1 1 4 6\n", "holdout=901-1000 leaves no training puzzle or no eval puzzle"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(SchoolError, match=message):
        Game24(path)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("game24", "the path of the puzzle file is missing; write game24:PATH.csv"),
        ("game24:none.csv", "cannot read none.csv"),
        ("game24:{path}?holdouts=1-2", "unknown option `holdouts`; did you mean `holdout`"),
        ("game24:{path}?holdout=1", "must be a range of ranks such as 901-1000"),
        ("game24:{path}?demos=solv", "unknown kind of demonstration `solv`; did you mean `solve`"),
        ("game24:{path}?demos=solve=-1", "the weight of `solve` is `-1`"),
    ],
)
def test_bad_options_are_refused(path: Path, spec: str, message: str):
    with pytest.raises(SchoolError, match=message):
        open_task(spec.format(path=path))


def test_the_papers_puzzles_are_held_out():
    if not REAL.exists():
        pytest.skip("needs ../shared/data/game24.csv beside the repository")
    game = Game24(REAL)
    assert (len(game.eval_problems()), len(game.train_puzzles)) == (100, 1262)
    assert format_numbers(game.eval_puzzles[0]) == "4 5 6 10"


def test_pages_are_about_training_puzzles_only(game: Game24):
    pages = game.pretraining_text(0, 20)
    assert pages == game.pretraining_text(0, 20)
    first = {line.removeprefix("With ").partition(" one may do")[0] for page in pages for line in page.splitlines()}
    fours = {left for left in first if len(left.split()) == 4}
    assert fours == {format_numbers(left) for left in game.train_puzzles}
