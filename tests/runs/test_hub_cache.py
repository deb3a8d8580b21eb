"""Names of models on the hub, which stand where a folder could stand."""

from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.runs.hub_cache import find_cached_model, parse_hub_name


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a/b", ("a/b", "main")),
        ("a/b@v1.0", ("a/b", "v1.0")),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
        ("a", None),
        ("/a/b", None),
        ("./a/b", None),
        ("a/b/c", None),
        ("a/b@", None),
        ("a/b-", None),
        ("a/b.git", None),
        ("a/" + "b" * 97, None),
    ],
)
def test_names_of_the_hub(text: str, parsed: tuple[str, str] | None) -> None:
    assert parse_hub_name(text) == parsed


@given(st.from_regex(r"[\w.@-]{1,9}/[\w.@/-]{1,9}", fullmatch=True))
def test_every_name_that_is_read_is_one_for_the_library(text: str) -> None:
    if parsed := parse_hub_name(text):
        validate_repo_id(parsed[0])
        assert text in (parsed[0], f"{parsed[0]}@{parsed[1]}")


def test_a_model_that_is_not_in_the_cache_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_cached_model("school/tiny") is None


def test_a_model_in_the_cache_is_found_by_branch_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--school--tiny" / "snapshots" / commit
    refs = tmp_path / "models--school--tiny" / "refs"
    snapshot.mkdir(parents=True)
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert find_cached_model("school/tiny") is None  # an interrupted download has no config.json yet
    (snapshot / "config.json").write_text("{}")
    assert find_cached_model("school/tiny") == find_cached_model(f"school/tiny@{commit}") == snapshot
    assert find_cached_model("school/tiny@v2") is None
