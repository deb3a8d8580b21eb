"""A config names the place of a mistake and its correction, in a file and on the command line."""

from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from schoolhouse.config import (
    BaseConfig,
    build,
    dump,
    leaf_fields,
    load,
    lookup,
    parse_args,
    read_yaml,
    suggest,
    union_members,
)
from schoolhouse.recipes import load_recipe, recipe_names
from schoolhouse.types import SchoolError


class Inner(BaseConfig):
    width: int = Field(8, gt=0)
    """How wide."""
    deep: bool = True


class Sample(BaseConfig):
    model: str
    """Folder of the model."""
    samples: int = Field(4, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    clip: tuple[float, float] = (0.2, 0.28)
    files: tuple[str, ...] = ()
    level: Literal["token", "sequence"] = "token"
    limit: int | None = None
    mask: bool = False
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _possible(self) -> "Sample":
        if self.mask and self.samples == 1:
            raise ValueError("mask with samples 1 leaves nothing; raise `samples`")
        return self


@pytest.fixture
def config_file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path | None, *words: str) -> str:
    with pytest.raises(SchoolError) as caught:
        load(Sample, path, words)
    return str(caught.value)


def test_defaults_then_file_then_arguments(config_file) -> None:
    path = config_file("model: here\nsamples: 7\nlearning_rate: 0.5\ninner:\n  width: 3\n  deep: false\n")
    c = load(Sample, path, ["--samples", "9", "--inner.width=5"])
    assert (c.model, c.samples, c.learning_rate, c.level) == ("here", 9, 0.5, "token")
    assert c.inner == Inner(width=5, deep=False)


def test_arguments_complete_and_correct_a_file(config_file) -> None:
    c = load(Sample, config_file("samples: 1\nmask: true\n"), ["--model", "m", "--samples", "2"])
    assert c.samples == 2


def test_every_spelling_of_options() -> None:
    args = ["m", "--learning-rate=1e-5", "--clip", "-0.1", ".3", "--files", "a", "b", "--mask", "--inner.no-deep"]
    c = load(Sample, None, [*args, "--limit", "3", "--limit", "none"], positional=["model"])
    assert (c.model, c.learning_rate, c.clip, c.files) == ("m", 1e-5, (-0.1, 0.3), ("a", "b"))
    assert (c.mask, c.inner.deep, c.limit) == (True, False, None)


def test_numbers_of_a_file_are_numbers_and_text_stays_text(config_file) -> None:
    c = load(Sample, config_file("learning_rate: 1e-5\nmodel: '12'\n"), ["--model", "34"])
    assert c.learning_rate == 1e-5
    assert c.model == "34"
    assert read_yaml(config_file("a: 1e-5\nb: -2E+3\nc: e5\n")).values == {"a": 1e-5, "b": -2000.0, "c": "e5"}


def test_a_list_of_arguments_replaces_a_list_of_the_file(config_file) -> None:
    path = config_file("model: m\nclip:\n  - 0.1\n  - 0.2\n")
    assert load(Sample, path, ["--clip", "0.3", "0.4"]).clip == (0.3, 0.4)
    assert refusal(path, "--clip", "0.3", "high").startswith("--clip is ['0.3', 'high']:")


def test_an_unknown_key_names_its_line_and_the_nearest_key(config_file) -> None:
    path = config_file("model: m\n\nlearnig_rate: 1\ninner:\n  widht: 3\n")
    assert f"{path}:3: unknown key `learnig_rate` in sample; did you mean `learning_rate`?" in refusal(path)
    assert f"{path}:5: unknown key `widht` in sample.inner; did you mean `width`?" in refusal(path)


def test_an_unknown_key_without_a_near_one_lists_the_known_keys(config_file) -> None:
    assert refusal(config_file("model: m\ninner: {zzz: 1}\n")).endswith(
        "unknown key `zzz` in sample.inner; known: deep, width"
    )


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_value_of_a_choice_can_be_given_on_the_command_line(recipe: str) -> None:
    """Choices of numbers too: text is no member of Literal[0, 1]."""
    for key, annotation in leaf_fields(load_recipe(recipe).config):
        for member in union_members(annotation):
            for value in get_args(member) if get_origin(member) is Literal else ():
                parsed = parse_args(load_recipe(recipe).config, [f"--{key}", str(value)]).values
                assert lookup(parsed, key) == value, (key, value)


def test_an_unknown_option_names_the_nearest_option() -> None:
    assert refusal(None, "--sample", "3") == "unknown option --sample; did you mean `--samples`?"


@pytest.mark.parametrize("value", ["-3", "0", "many", "1.5"])
def test_a_bad_value_has_the_same_message_in_a_file_and_on_the_command_line(config_file, value: str) -> None:
    path = config_file(f"model: m\nsamples: {value}\n")
    allowed = refusal(path).partition(": it should be ")[2]
    assert allowed.startswith("greater than 0" if value in ("-3", "0") else "a valid integer")
    assert refusal(path).startswith(f"{path}:2: `samples` is ")
    assert refusal(None, "--model", "m", "--samples", value).startswith(f"--samples is '{value}': it should be ")


def test_all_mistakes_are_named_at_once(config_file) -> None:
    lines = refusal(config_file("samples: 0\nlevel: word\n"), "--learning_rate", "-1").splitlines()
    assert len(lines) == 4
    assert any("`model` is missing: write `model: ...` or give --model" in line for line in lines)
    assert any("'token' or 'sequence'" in line for line in lines)


def test_a_missing_key_without_a_file_names_the_option() -> None:
    assert refusal(None) == "sample: `model` is missing: give --model"


def test_an_impossible_combination_names_the_correction(config_file) -> None:
    path = config_file("model: m\nmask: true\n")
    assert refusal(path, "--samples", "1") == f"{path}: mask with samples 1 leaves nothing; raise `samples`"


def test_a_duplicate_key_is_an_error(config_file) -> None:
    path = config_file("model: m\ninner:\n  width: 3\n  width: 4\n")
    assert refusal(path) == f"{path}:4: duplicate key `width` (first on line 3); delete one of the two"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [a\nsamples: 3\n", ":2: the file is not valid YAML"),
        ("a: &x [*x]\n", "refers to itself"),
        ("a: !!python/object:os.system x\n", ":1: the file is not valid YAML"),
        ("- 1\n- 2\n", "expected `key: value` lines"),
        ("model: m\ninner: 5\n", ":2: `inner` is 5: it should hold `key: value` lines"),
        ("? [a, b]\n: 1\n", ":1: a key must be a plain word"),
        ("1: 2\nmodel: m\n", "Keys should be strings"),
        ("a\tb: \x00", "not valid YAML"),
        ("model: 2024-13-45\n", "in quotes"),
    ],
)
def test_a_file_that_is_not_a_config_is_named(config_file, text: str, expected: str) -> None:
    path = config_file(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert expected in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"cannot read {tmp_path / 'none.yaml'}: No such file or directory"
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    assert "is not UTF-8 text (byte 10)" in refusal(tmp_path / "latin.yaml")


def test_an_option_needs_its_number_of_values() -> None:
    assert refusal(None, "--samples") == "--samples needs one value, found none"
    assert refusal(None, "--samples", "1", "2") == "--samples needs one value, found 2: ['1', '2']"
    assert "it has too few values" in refusal(None, "--model", "m", "--clip", "1")
    assert refusal(None, "stray") == "unexpected argument `stray`; options begin with --"


def test_a_part_of_a_file_keeps_its_lines(config_file) -> None:
    path = config_file("stages:\n  - config:\n      model: m\n  - config:\n      model: m\n      samples: -1\n")
    source = read_yaml(path)
    assert build(Sample, source.at("stages", 0, "config")) == Sample(model="m")
    with pytest.raises(SchoolError, match=f"{path.name}:6: `samples` is -1"):
        build(Sample, source.at("stages", 1, "config"))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample(model="m").samples = 3  # ty: ignore[invalid-assignment]


def test_a_key_of_a_group_suggests_its_dotted_option() -> None:
    assert refusal(None, "--width", "3") == "unknown option --width; did you mean `--inner.width`?"
    assert refusal(None, "--widht", "3") == "unknown option --widht; did you mean `--inner.width`?"


def test_a_key_of_a_group_suggests_its_dotted_key_in_a_file(config_file) -> None:
    path = config_file("model: m\nwidth: 3\n")
    assert refusal(path) == f"{path}:2: unknown key `width` in sample; did you mean `inner.width`?"
    path = config_file("model: m\ninner:\n  samples: 3\n")
    assert refusal(path) == f"{path}:3: unknown key `samples` in sample.inner; did you mean `samples`?"


def test_a_key_of_two_groups_suggests_both() -> None:
    assert suggest("--kl", ["--loss.kl", "--rewards.kl", "--kind"]) == "; did you mean `--loss.kl` or `--rewards.kl`?"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        Sample,
        model=texts,
        samples=st.integers(2, 10**12),
        learning_rate=st.floats(1e-300, 1e300),
        clip=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
        files=st.lists(texts, max_size=3).map(tuple),
        limit=st.none() | st.integers(),
        mask=st.booleans(),
        inner=st.builds(Inner, width=st.integers(1, 99), deep=st.booleans()),
    )
)
def test_dump_and_load_give_the_same_config(tmp_path_factory, config: Sample) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(Sample, path) == config
