"""Races: turns in order, medians and ratios, and what a contender that dies leaves to read."""

import shutil

import pytest

from schoolhouse.bench import benchmark
from schoolhouse.bench.workload import SHAPES, Work, shape_of
from schoolhouse.types import SchoolError

OURS = """
from pathlib import Path
from turns import read_work, take_turns
folder, work = read_work()
take_turns(lambda: (folder / "order").open("a").write("o") and {"tokens": 10, "seconds": work["slow"]})
"""
FAILS = "import sys; sys.exit('no such engine')"


@pytest.fixture
def track(tmp_path, monkeypatch):
    shutil.copy(benchmark.HERE / "turns.py", tmp_path)
    (tmp_path / "work.json").write_text('{"threads": 1, "slow": 2.0}')
    (tmp_path / "sampler_ours.py").write_text(OURS)
    (tmp_path / "sampler_quick.py").write_text(OURS.replace('"o"', '"q"').replace('work["slow"]', "1.0"))
    (tmp_path / "sampler_broken.py").write_text(FAILS)
    monkeypatch.setattr(benchmark, "HERE", tmp_path)
    return tmp_path


def test_contenders_take_turns_after_one_that_does_not_count(track):
    told = []
    result = benchmark.race(track, "sampler", "quick", 3, tell=lambda done, total: told.append((done, total)))
    assert (track / "order").read_text() == "oq" + "oq" * 3
    assert result["ratios"] == [0.5, 0.5, 0.5]
    assert result["tokens_per_second"] == {"ours": 5.0, "quick": 10.0}
    assert result["turns"]["ours"][0]["peak"] > 1e6
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_a_dying_contender_said_is_shown(track):
    with pytest.raises(SchoolError, match=r"(?s)sampler_broken ended early \(exit 1\).*no such engine"):
        benchmark.race(track, "sampler", "broken", 1)


@pytest.mark.parametrize(
    "kind, peer, size, message",
    [
        ("samplr", "vllm", None, "there is no work `samplr`; did you mean `sampler`"),
        ("sampler", "trl", None, "nobody runs sampler against `trl`"),
        ("sampler", "vllm", "31M", "there is no size `31M`"),
    ],
)
def test_what_nobody_can_run_is_refused(kind, peer, size, message):
    with pytest.raises(SchoolError, match=message):
        benchmark.bench(kind, peer, size, {}, lambda done, total: None)


def test_a_search_needs_a_model_that_was_taught():
    options = {"problems": 2, "samples": 2, "threads": 1, "model": None, "task": "school", "search": "vote"}
    with pytest.raises(SchoolError, match="give --model FOLDER --task TASK"):
        benchmark.bench("search", "vote", None, options, lambda done, total: None)


def test_every_kind_has_our_contender_and_a_peer():
    assert set(benchmark.kinds()) == {"sampler", "learner", "grpo", "pretrain", "server", "search"}
    for kind in benchmark.kinds():
        assert (benchmark.HERE / f"{kind}_ours.py").exists()


def test_work_is_the_same_for_everyone():
    work = Work(problems=3, samples=2)
    assert work.prompts(100) == Work(problems=3, samples=2).prompts(100)
    assert [len(row) for row in work.lengths()] == [2, 2, 2]
    together = sum(2 * len(prompt) for prompt in work.prompts(100)) + sum(map(sum, work.lengths()))
    assert sum(map(len, work.rows(100))) == together


@pytest.mark.parametrize("size, millions", [("1M", 1), ("3M", 3), ("10M", 10), ("30M", 30)])
def test_sizes_are_what_they_say(size, millions):
    s = shape_of(size, 512)
    block = 4 * s.hidden_size**2 + 3 * s.hidden_size * s.intermediate_size
    assert SHAPES[size][0] == s.hidden_size
    assert s.num_hidden_layers * block + s.vocab_size * s.hidden_size == pytest.approx(millions * 1e6, rel=0.2)


def test_a_python_that_is_none_is_refused_before_anything_runs(tmp_path):
    options = {"python": str(tmp_path / "none"), "size": "3M", "problems": 1, "samples": 1, "threads": 1}
    with pytest.raises(SchoolError, match="is not a program"):
        benchmark.bench("sampler", "vllm", None, {**options, "dtype": "", "source": "", "repeats": 1}, lambda *_: None)
