"""What each command of `school` does: reads its words into a frozen config and hands over to the module that knows."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

from pydantic import Field

from schoolhouse import recipes
from schoolhouse.config import Frozen, describe, load, nearest
from schoolhouse.durable import to_json, write_whole
from schoolhouse.progress import progress
from schoolhouse.types import Problem, SchoolError

C = TypeVar("C", bound=Frozen)


def train(words: Sequence[str]) -> None:
    """school train RECIPE [CONFIG.yaml] [--key value ...] [--dir FOLDER]"""
    folder, words = _take(words, "--dir", "")
    asked = _recipe(words, "train", " [--dir FOLDER]")
    if asked is None:
        return
    recipe, module, config = asked
    folder = folder or f"runs/{recipe}"

    from schoolhouse.run import Run

    with Run.open(Path(folder), config, recipe) as run:
        if run.finished:
            print(f"{folder} is finished already; give another folder with --dir for another run")
        else:
            getattr(module, recipe)(config, run)
        print(f"the model is in {run.model}; talk to it: school chat {folder}")


def estimate(words: Sequence[str]) -> None:
    """school estimate RECIPE [CONFIG.yaml] [--key value ...]"""
    asked = _recipe(words, "estimate", "")
    if asked is None:
        return
    from schoolhouse.estimate import estimate as measure

    print(measure(asked[0], asked[2]))


def _recipe(words: Sequence[str], command: str, more: str) -> tuple[str, ModuleType, Frozen] | None:
    """Name, module and config of the recipe that is asked for; None where help was asked for and has been given."""
    known = sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: school {command} RECIPE [CONFIG.yaml] [--key value ...]{more}\n")
        print(f"recipes: {', '.join(known)}; `school {command} RECIPE --help` lists its keys")
        return None
    recipe, *rest = words
    if recipe not in known:
        raise SchoolError(f"there is no recipe `{recipe}`{nearest(recipe, known)}")
    module = import_module(f"schoolhouse.recipes.{recipe}")
    if _asks_help(rest):
        about = (module.__doc__ or "").partition("\n\n")[0]
        describe(module.Config, f"school {command} {recipe} [CONFIG.yaml]{more}", about)
        return None
    path = Path(rest.pop(0)) if rest and not rest[0].startswith("--") else None
    return recipe, module, load(module.Config, path, rest)


class Bench(Frozen):
    kind: str
    """Work to race in: sampler, learner, grpo, pretrain, server, search; or `study`, how our cost grows and where our
    time goes; or `page`, docs/performance.md from the files in the folder that --json names."""
    against: str = ""
    """The peer to take turns with."""
    size: str | None = None
    """Of the model: 1M, 3M, 10M, 30M, 100M; 3M unless given, and for pretrain that of nanochat's CPU configuration."""
    repeats: int = Field(3, gt=0)
    problems: int = Field(32, gt=0)
    samples: int = Field(16, gt=0)
    """Answers to each problem."""
    threads: int = Field(2, gt=0)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number type of the peer: give it the one it is quicker in. Ours is what `school train` picks on this machine."""
    python: Path | None = None
    """Python of the environment that the peer lives in, if not this one."""
    source: Path | None = None
    """Checkout of a peer that is run from its own source."""
    model: Path | None = None
    """search: folder of a model that was taught the task, or of its run."""
    task: str = ""
    """search: what is solved, such as game24:PATH.csv."""
    search: str = "tot?thoughts=propose&samples=32&lists=2&listed=560&length=64"
    """search: how; the peer gives as many plain answers to each problem as --samples says."""


def bench(words: Sequence[str]) -> None:
    """school bench KIND --against PEER"""
    file, words = _take(words, "--json", "")
    usage = "school bench KIND --against PEER [--size 3M] [--repeats 3] [--json FILE]"
    c = options(Bench, words, usage, ("kind",))
    if c is None:
        return
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)  # before the race, which may take an hour
    from schoolhouse.bench.page import write_page
    from schoolhouse.bench.race import bench as measure
    from schoolhouse.bench.race import table
    from schoolhouse.bench.study import breakdown, curves

    if c.kind == "page":
        write_page(Path(file or "runs/bench"), Path("docs/performance.md"))
        return
    if c.kind == "study":
        parts = [breakdown(size, c.threads) for size in ("3M", "30M")]
        text = to_json({"curves": curves(), "breakdown": parts[0] | parts[1]}, 2)
        print(text)
        if file:
            write_whole(Path(file), text + "\n")
        return
    with _counting(f"{c.kind}: ours and {c.against}") as tell:
        result = measure(c.kind, c.against, c.size, c.model_dump(mode="json"), tell)
    print(table(result))
    if file:
        write_whole(Path(file), to_json(result, 2) + "\n")


class Tokens(Frozen):
    text: str
    """What to cut."""
    model: Path
    """Folder of a model or of a run (the tokenizer is all that is read)."""
    markup: bool = False
    """Read <think> and its like as markup, not as text."""


def tokens(words: Sequence[str]) -> None:
    """school tokens TEXT --model MODEL"""
    c = options(Tokens, words, "school tokens TEXT --model MODEL", ("text",))
    if c is None:
        return
    from rich.console import Console

    from schoolhouse.text.display import show_tokens
    from schoolhouse.text.tokenizer import Tokenizer

    Console(highlight=False).print(show_tokens(c.text, Tokenizer.load(c.model), c.markup))


class Evaluate(Frozen):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    task: str = "school"
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    problems: int | None = Field(200, gt=0)
    """Held-out problems to answer; none: all of them."""
    samples: int = Field(8, gt=0)
    """Answers to each problem."""
    length: int | None = Field(None, gt=0)
    """Tokens an answer may take, thinking included; none: what the model can read, at most 512."""
    temperature: float = Field(1.0, ge=0)
    seed: int = 0
    search: str = ""
    """Think longer (docs/search.md), with options as in "vote?samples=32" or "tot?breadth=1&thoughts=propose"."""
    budget: float = Field(inf, gt=0)
    """Tokens a search may spend on one problem, its judges' included."""
    save: Path | None = None
    """File for the result problem by problem, as JSON."""


def evaluate(words: Sequence[str]) -> None:
    """school evaluate MODEL --task TASK"""
    c = options(Evaluate, words, "school evaluate MODEL --task TASK", ("model",))
    if c is None:
        return
    from schoolhouse.measure.evaluate import evaluate as sit
    from schoolhouse.policy.policy import Policy
    from schoolhouse.tasks.task import open_task

    task = open_task(c.task, c.seed)
    policy = Policy.load(c.model)
    saved: dict[str, object] = {}
    if c.save:
        c.save.parent.mkdir(parents=True, exist_ok=True)
    if c.search:
        from schoolhouse.search.solve import Searcher, parse

        ours = sorted(c.model_fields_set & {"samples", "temperature", "length"})
        if ours:
            named = " and ".join(f"--{name}" for name in ours)
            raise SchoolError(f"a search has options of its own: instead of {named} write them behind `?` in --search")
        searcher = Searcher(policy, task, parse(c.search, c.budget))
        result = sit(searcher, task, c.problems, 1, searcher.search.length, searcher.search.temperature, c.seed)
        print(result)
        print(searcher.account())
        saved = searcher.to_json()
    else:
        result = sit(policy, task, c.problems, c.samples, c.length, c.temperature, c.seed)
        print(result)
    if c.save:
        write_whole(c.save, to_json({**result.to_json(records=True), **saved}, 2) + "\n")


class Task(Frozen):
    name: str
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    show: int = Field(3, gt=0)
    """How many problems to print."""
    exam: bool = False
    """Print held-out problems instead of practice."""
    worked: bool = False
    """Print worked examples instead of practice."""
    check: bool = False
    """Judge every reference answer (must be right) and what must not pass for one: a perturbed, an empty, a cut one."""
    limit: int | None = Field(None, gt=0)
    """Check this many problems instead of all."""
    seed: int = 0


def task(words: Sequence[str]) -> None:
    """school task NAME [--show N] [--check]"""
    c = options(Task, words, "school task NAME [--show N] [--exam] [--worked] [--check [--limit N]]", ("name",))
    if c is None:
        return
    from schoolhouse.tasks.task import check, open_task

    opened = open_task(c.name, c.seed)
    if c.check:
        with _counting(f"checking {c.name}") as tell:
            audit = check(opened, c.limit, tell)
        print(audit)
        if not audit.passed:
            raise SchoolError(f"{c.name} misjudges {len(audit.failures):,} of its own answers: do not train on it")
    elif c.worked:
        for lesson in opened.worked(0, c.show):
            _print_problem(lesson.problem, f"by hand: {lesson.hand}" if lesson.hand else "")
            print(f"assistant: <think>{lesson.thought or ''}</think>{lesson.answer}\n")
    else:
        for problem in opened.exam(c.show) if c.exam else opened.draw(0, c.show):
            _print_problem(problem)
            print(f"reference: {problem.reference}\n")


def _print_problem(problem: Problem, note: str = "") -> None:
    print(f"[{problem.id}] {note}".rstrip())
    for message in problem.messages:
        print(f"{message.role}: {message.content}")


@contextmanager
def _counting(title: str) -> Generator[Callable[[int, int], None]]:
    """A progress bar that is told (done, total), and starts when it is first told."""
    with ExitStack() as stack:
        advance: Callable[[int, str], None] | None = None
        before = 0

        def tell(done: int, total: int) -> None:
            nonlocal advance, before
            advance = advance or stack.enter_context(progress(title, total, unit="answer"))
            advance(done - before, "")
            before = done

        yield tell


class Pipeline(Frozen):
    pipeline: str
    """File that lists the stages."""
    seed: int | None = None
    """Instead of the file's."""
    dir: Path | None = None
    """Folder of the whole run; runs/NAME unless given."""


class Quickstart(Frozen):
    seed: int = 0
    dir: Path = Path("runs/quickstart")
    """Folder of the whole run."""


def run(words: Sequence[str]) -> None:
    """school run PIPELINE.yaml [--seed N] [--dir FOLDER]"""
    c = options(Pipeline, words, "school run PIPELINE.yaml [--seed N] [--dir FOLDER]", ("pipeline",))
    if c is None:
        return
    from schoolhouse.pipeline import run_pipeline

    run_pipeline(c.pipeline, c.seed, c.dir or Path("runs") / Path(c.pipeline).stem)


def quickstart(words: Sequence[str]) -> None:
    """school quickstart [--seed N] [--dir FOLDER]"""
    c = options(Quickstart, words, "school quickstart [--seed N] [--dir FOLDER]", ())
    if c is None:
        return
    from schoolhouse.pipeline import run_pipeline

    run_pipeline("quickstart", c.seed, c.dir)


def _asks_help(words: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") for word in words)


def options(cls: type[C], words: Sequence[str], usage: str, positional: Sequence[str]) -> C | None:
    """The command's words as its config; None where help was asked for and has been given."""
    if _asks_help(words):
        describe(cls, " ".join(usage.split()[:2]), usage)
        return None
    return load(cls, None, words, positional)


def _take(words: Sequence[str], option: str, otherwise: str) -> tuple[str, list[str]]:
    """The value of one option, and the words without it."""
    rest = list(words)
    for i, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name == option and equals:
            return value, rest[:i] + rest[i + 1 :]
        if name == option:
            if i + 1 == len(rest) or rest[i + 1].startswith("--"):
                raise SchoolError(f"{option} takes one value, none was given")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
    return otherwise, rest
