"""The page: the results go between its marks, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.bench.page import END, START, write_page
from schoolhouse.bench.profile import PARTS
from schoolhouse.types import SchoolError


def make_result(kind: str = "sampler", peer: str = "vllm", size: str = "3M", vectors: str = "AVX512") -> dict[str, Any]:
    names = ("schoolhouse", peer)
    return {
        "kind": kind,
        "peer": peer,
        "repeats": {name: [{"seconds": 1.0, "tokens": 10, "peak": 1, "logprob_gap": 1e-4}] for name in names},
        "tokens_per_second": {"schoolhouse": 12_345.0, peer: 5_000.0},
        "ratios": [2.4, 2.5, 2.6],
        "median_ratio": 2.5,
        "peak_ratio": 0.4,
        "peer_options": {"dtype": "float32"},
        "work": {"size": size, "problems": 32, "samples": 16},
        "limits": {"bfloat16": 4e11, "float32": 2e11, "bandwidth": 3e10},
        "vectors": vectors,
        "machine": {"versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "cores": 2, "processor": ["avx2"]},
    }


def test_results_stand_between_the_marks(tmp_path: Path):
    page, folder = tmp_path / "performance.md", tmp_path / "results"
    folder.mkdir()
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    (folder / "a.json").write_text(json.dumps(make_result()))
    (folder / "b.json").write_text(json.dumps(make_result("grpo", "trl", "30M")))
    curves = {name: {"1": 1.0, "4": 2.0} for name in "abcd"}
    breakdown = {"sampling, 3M": dict.fromkeys(PARTS, 1.0)}
    (folder / "profile.json").write_text(json.dumps({"curves": curves, "breakdown": breakdown}))
    write_page(folder, page)
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert (
        "| sampler | vllm (float32) | 3M, 512 rows | AVX512 | 12,345 | 5,000 | **2.50** (2.40, 2.50, 2.60) | 1.5 |"
        in text
    )
    assert "0.40x (target 0.5x)" in text
    assert "at most 1.0e-04" in text
    assert (tmp_path / "performance" / "figure.png").stat().st_size > 10_000
    write_page(folder, page)
    assert page.read_text() == text


def test_the_two_kinds_of_processors_stand_side_by_side(tmp_path: Path):
    page, folder = tmp_path / "performance.md", tmp_path / "results"
    folder.mkdir()
    page.write_text(f"{START}\n{END}\n")
    for n, (kind, vectors) in enumerate(
        [("sampler", "AVX2"), ("grpo", "AVX2"), ("grpo", "AVX512"), ("sampler", "AVX512")]
    ):
        (folder / f"{n}.json").write_text(json.dumps(make_result(kind, "trl", vectors=vectors)))
    write_page(folder, page)
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith(("| grpo", "| sampler"))]
    assert [(row[0], row[3]) for row in rows] == [
        ("| grpo", "AVX512"),
        ("| grpo", "AVX2"),
        ("| sampler", "AVX512"),
        ("| sampler", "AVX2"),
    ]


def test_a_page_without_marks_and_a_folder_without_results_are_refused(tmp_path: Path):
    page = tmp_path / "performance.md"
    page.write_text("nothing")
    with pytest.raises(SchoolError, match="has no results"):
        write_page(tmp_path, page)
    (tmp_path / "a.json").write_text(json.dumps(make_result()))
    with pytest.raises(SchoolError, match="add these lines to the page:\n<!--"):
        write_page(tmp_path, page)


def test_the_committed_page_has_the_marks_and_the_table_of_today():
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert (
        text.index(START)
        < text.index("| workload | against | model | vectors | schoolhouse, tokens/s |")
        < text.index(END)
    )
