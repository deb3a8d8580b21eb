"""`school train`, `school estimate`, `school run`, `school quickstart`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schoolhouse.cli.options import parse_options, take_option, wants_help
from schoolhouse.config import BaseConfig, load, print_help
from schoolhouse.recipes import Recipe, load_recipe, recipe_names


def train(words: Sequence[str]) -> None:
    """school train RECIPE [CONFIG.yaml] [--key value ...] [--dir FOLDER]"""
    folder, words = take_option(words, "--dir", "")
    chosen = _recipe(words, "train", " [--dir FOLDER]")
    if chosen is None:
        return
    recipe, config = chosen
    folder = folder or f"runs/{Path(recipe.name).stem}"

    from schoolhouse.runs.run import Run

    with Run.open(Path(folder), config, recipe.name) as run:
        if run.finished:
            print(f"{folder} is finished already; give another folder with --dir for another run")
        else:
            recipe.train(config, run)
        print(f"the model is in {run.model}; talk to it: school chat {folder}")


def estimate(words: Sequence[str]) -> None:
    """school estimate RECIPE [CONFIG.yaml] [--key value ...]"""
    chosen = _recipe(words, "estimate", "")
    if chosen is None:
        return
    from schoolhouse.runs.estimate import estimate as measure

    print(measure(chosen[0].name, chosen[1]))


def _recipe(words: Sequence[str], command: str, more: str) -> tuple[Recipe, BaseConfig] | None:
    """The recipe that the words name and its config; None after printing help."""
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: school {command} RECIPE [CONFIG.yaml] [--key value ...]{more}\n")
        print(f"recipes: {', '.join(recipe_names())}, or the file of your own (my_recipe.py)")
        print(f"`school {command} RECIPE --help` lists its keys")
        return None
    name, *rest = words
    recipe = load_recipe(name)
    if wants_help(rest):
        print_help(recipe.config, f"school {command} {name} [CONFIG.yaml]{more}", recipe.about)
        return None
    path = Path(rest.pop(0)) if rest and not rest[0].startswith("--") else None
    return recipe, load(recipe.config, path, rest)


class Pipeline(BaseConfig):
    pipeline: str
    """File that lists the stages."""
    seed: int | None = None
    """Instead of the file's."""
    dir: Path | None = None
    """Folder of the whole run; runs/NAME unless given."""


class Quickstart(BaseConfig):
    seed: int = 0
    dir: Path = Path("runs/quickstart")
    """Folder of the whole run."""


def run(words: Sequence[str]) -> None:
    """school run PIPELINE.yaml [--seed N] [--dir FOLDER]"""
    c = parse_options(Pipeline, words, "school run PIPELINE.yaml [--seed N] [--dir FOLDER]", ("pipeline",))
    if c is None:
        return
    from schoolhouse.runs.pipeline import run_pipeline

    run_pipeline(c.pipeline, c.seed, c.dir or Path("runs") / Path(c.pipeline).stem)


def quickstart(words: Sequence[str]) -> None:
    """school quickstart [--seed N] [--dir FOLDER]"""
    c = parse_options(Quickstart, words, "school quickstart [--seed N] [--dir FOLDER]", ())
    if c is None:
        return
    from schoolhouse.runs.pipeline import run_pipeline

    run_pipeline("quickstart", c.seed, c.dir)
