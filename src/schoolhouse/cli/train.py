"""This module has the commands `school train`, `school estimate`, `school run` and `school quickstart`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schoolhouse.cli.help import print_help, wants_help
from schoolhouse.cli.options import parse_options, take_option
from schoolhouse.config import BaseConfig, load
from schoolhouse.recipes import Recipe, load_recipe, recipe_names


def train(args: Sequence[str]) -> None:
    """Run the command `school train RECIPE [CONFIG.yaml] [--key value ...] [--dir FOLDER]`."""
    folder, args = take_option(args, "--dir", "")
    chosen = _recipe(args, "train", " [--dir FOLDER]")
    if chosen is None:
        return
    recipe, config = chosen
    folder = folder or f"runs/{Path(recipe.name).stem}"

    from schoolhouse.runs.pipeline import open_run, train_recipe

    with open_run(Path(folder), config, recipe) as run:
        if run.finished:
            print(f"{folder} is already finished; give another folder with --dir for another run")
        else:
            train_recipe(run, recipe)
        print(f"the model is in {run.model}; chat with it: school chat {folder}")


def estimate(args: Sequence[str]) -> None:
    """Run the command `school estimate RECIPE [CONFIG.yaml] [--key value ...]`."""
    chosen = _recipe(args, "estimate", "")
    if chosen is None:
        return
    from schoolhouse.runs.estimate import estimate as measure

    print(measure(chosen[0].name, chosen[1]))


def _recipe(args: Sequence[str], command: str, more: str) -> tuple[Recipe, BaseConfig] | None:
    """Return the recipe that the arguments name, and the config of the recipe. Return None after printing help."""
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: school {command} RECIPE [CONFIG.yaml] [--key value ...]{more}\n")
        print(f"recipes: {', '.join(recipe_names())}, or a recipe file of your own (my_recipe.py)")
        print(f"`school {command} RECIPE --help` lists the keys of a recipe")
        return None
    name, *rest = args
    recipe = load_recipe(name)
    if wants_help(rest):
        usage = f"[CONFIG.yaml] [--key value ...]{more}"
        print_help(recipe.config, f"school {command} {name}", usage, recipe.about, rest)
        return None
    path = Path(rest.pop(0)) if rest and not rest[0].startswith("--") else None
    return recipe, load(recipe.config, path, rest, defaults=lambda given: _size_defaults(recipe, given))


def _size_defaults(recipe: Recipe, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the defaults that depend on the size of the model, and print these defaults."""
    from schoolhouse.runs.size_defaults import size_defaults

    chosen = size_defaults(recipe.config, given)
    if chosen:
        values = ", ".join(f"{key} {value:g}" for key, value in chosen.items())
        print(f"school: chosen for the size of this model: {values}", file=sys.stderr)
    return chosen


class Pipeline(BaseConfig):
    pipeline: str
    """YAML file that lists the stages, or the name of a packaged pipeline."""
    seed: int | None = None
    """Seed; none: the seed in the file."""
    dir: Path | None = None
    """Folder of the whole run; none: runs/NAME."""


class Quickstart(BaseConfig):
    seed: int = 0
    dir: Path = Path("runs/quickstart")
    """Folder of the whole run."""


def run(args: Sequence[str]) -> None:
    """Run the command `school run PIPELINE.yaml [--seed N] [--dir FOLDER]`."""
    c = parse_options(Pipeline, args, "school run PIPELINE.yaml [--seed N] [--dir FOLDER]", ("pipeline",))
    if c is None:
        return
    from schoolhouse.runs.pipeline import run_pipeline

    run_pipeline(c.pipeline, c.seed, c.dir or Path("runs") / Path(c.pipeline).stem)


def quickstart(args: Sequence[str]) -> None:
    """Run the command `school quickstart [--seed N] [--dir FOLDER]`."""
    c = parse_options(Quickstart, args, "school quickstart [--seed N] [--dir FOLDER]", ())
    if c is None:
        return
    from schoolhouse.runs.pipeline import run_pipeline

    run_pipeline("quickstart", c.seed, c.dir)
