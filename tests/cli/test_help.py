"""Help texts: every key of a small config; the top level and the groups of a large one."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from schoolhouse.cli.help import ONE_SCREEN, config_help, entries, print_help
from schoolhouse.config import BaseConfig, leaf_fields
from schoolhouse.recipes import load_recipe, recipe_names
from schoolhouse.types import SchoolError


class Inner(BaseConfig):
    """Settings of the inside.

    More about them.
    """

    width: int = Field(8, gt=0)
    """How wide."""
    deep: bool = True


class Sample(BaseConfig):
    model: Path
    """Folder of the model."""
    level: Literal["token", "sequence"] = "token"
    clip: tuple[float, float] = (0.2, 0.28)
    files: tuple[str, ...] = ()
    limit: int | None = None
    name: str = ""
    inner: Inner = Inner(width=5)


def help_of(topic: str = "", cls: type[BaseConfig] = Sample, width: int = 100) -> str:
    return config_help(cls, "school train sample", "[--key value ...]", "About it.", topic, width)


def test_a_small_config_shows_every_key_with_type_default_and_description() -> None:
    assert help_of().splitlines() == [
        "usage: school train sample [--key value ...]",
        "",
        "About it.",
        "",
        "  --model PATH                  Folder of the model. (required)",
        "  --level {token,sequence}      (default: token)",
        "  --clip FLOAT FLOAT            (default: 0.2 0.28)",
        "  --files TEXT ...              (default: empty)",
        "  --limit INT|none              (default: none)",
        "  --name TEXT                   (default: empty)",
        "  --inner.width INT             How wide. (default: 5)",
        "  --inner.deep BOOL             (default: true)",
    ]


def test_a_group_is_shown_by_its_name() -> None:
    text = help_of("inner")
    assert "--inner.width" in text
    assert "--model" not in text
    with pytest.raises(SchoolError, match="unknown group `iner`; did you mean `inner`?"):
        help_of("iner")


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("width", [80, 120])
def test_help_of_a_recipe_fits_its_width_and_has_every_key(name: str, width: int) -> None:
    recipe = load_recipe(name)
    text = config_help(recipe.config, f"school train {name}", "[CONFIG.yaml]", recipe.about, "all", width)
    assert all(f"--{key} " in text for key in dict(leaf_fields(recipe.config)))
    choices = [line for line in text.splitlines() if "{" not in line]
    assert max(map(len, choices)) <= width


def test_help_of_grpo_is_one_screen_with_its_groups() -> None:
    config = load_recipe("grpo").config
    text = config_help(config, "school train grpo", "[CONFIG.yaml]")
    keys, _, groups = text.partition("groups of keys:")
    assert len(dict(leaf_fields(config))) > ONE_SCREEN
    assert 10 <= sum(line.startswith("  --") for line in keys.splitlines()) <= ONE_SCREEN
    for group in ("sampling", "optimizer", "loss", "advantage", "rewards", "eval"):
        assert f"--{group}.*" in groups
        assert f"--{group}." not in keys
    assert "`school train grpo --help " in groups
    assert len(text.splitlines()) <= 60


def test_the_shown_default_is_that_of_the_whole_config() -> None:
    defaults = {entry.key: entry.default for entry in entries(Sample)}
    assert defaults["inner.width"] == "5"
    assert defaults["model"] is None


def test_print_help_reads_the_topic_behind_help(capsys: pytest.CaptureFixture[str]) -> None:
    print_help(Sample, "school train sample", "", "", ["--help", "inner"])
    assert "--inner.width" in (printed := capsys.readouterr().out)
    assert "--model" not in printed
