"""Benchmarks: repeats in turn, medians and ratios, and the log of a backend that ends early."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from schoolhouse.bench import benchmark, profile
from schoolhouse.bench.limits import Limits
from schoolhouse.bench.workload import MODEL_SIZES, Workload, model_config
from schoolhouse.model.kernel_build import load_kernels
from schoolhouse.types import SchoolError

BACKEND = """
from protocol import read_workload, serve_repeats
folder, work = read_workload()
serve_repeats(lambda: (folder / "order").open("a").write("s") and {"tokens": 10, "seconds": work["slow"]})
"""
FAILS = "import sys; sys.exit('no such engine')"


@pytest.fixture
def backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a workload and three backends of the sampler: this package's, a fast one, and one that fails."""
    shutil.copy(benchmark.BACKENDS / "protocol.py", tmp_path)
    (tmp_path / "work.json").write_text('{"threads": 1, "slow": 2.0}')
    (tmp_path / "sampler_schoolhouse.py").write_text(BACKEND)
    (tmp_path / "sampler_fast.py").write_text(BACKEND.replace('"s"', '"f"').replace('work["slow"]', "1.0"))
    (tmp_path / "sampler_broken.py").write_text(FAILS)
    monkeypatch.setattr(benchmark, "BACKENDS", tmp_path)
    return tmp_path


def test_backends_run_in_turn_after_a_repeat_that_is_not_counted(backends: Path):
    stages: list[str] = []
    result = benchmark.run_repeats(backends, "sampler", "fast", 3, report=stages.append)
    assert (backends / "order").read_text() == "sf" + "sf" * 3
    assert result["ratios"] == [0.5, 0.5, 0.5]
    assert result["tokens_per_second"] == {"schoolhouse": 5.0, "fast": 10.0}
    assert result["repeats"]["schoolhouse"][0]["peak"] > 1e6
    assert stages[:2] == [
        f"starting {name} with a first repeat that is not measured" for name in ("schoolhouse", "fast")
    ]
    assert stages[2:4] == ["repeat 1 of 3: schoolhouse", "repeat 1 of 3: fast"]
    assert stages[-1] == "repeat 3 of 3: fast"


def test_the_log_of_a_backend_that_ends_early_is_shown(backends: Path):
    with pytest.raises(SchoolError, match=r"(?s)sampler_broken ended early with exit status 1.*no such engine"):
        benchmark.run_repeats(backends, "sampler", "broken", 1)


@pytest.mark.parametrize(
    ("kind", "peer", "size", "message"),
    [
        ("samplr", "vllm", None, "unknown workload `samplr`; did you mean `sampler`"),
        ("sampler", "trl", None, "sampler has no backend `trl`"),
        ("sampler", "vllm", "31M", "unknown size `31M`"),
    ],
)
def test_an_unknown_benchmark_is_refused(kind: str, peer: str, size: str | None, message: str):
    with pytest.raises(SchoolError, match=message):
        benchmark.run_benchmark(kind, peer, size, {}, lambda stage: None)


def test_a_search_needs_a_model_and_a_task():
    options = {"problems": 2, "samples": 2, "threads": 1, "model": None, "task": "school", "search": "vote"}
    with pytest.raises(SchoolError, match="give --model FOLDER --task TASK"):
        benchmark.run_benchmark("search", "vote", None, {**options, "python": None}, lambda stage: None)


def test_every_kind_has_a_backend_of_this_package_and_of_another():
    assert set(benchmark.peers_by_kind()) == {"sampler", "learner", "grpo", "pretrain", "server", "search"}


def test_a_helper_module_is_not_a_kind(backends: Path):
    shutil.copy(Path(benchmark.__file__).parent / "backends" / "forced_length.py", backends)
    assert benchmark.peers_by_kind() == {"sampler": ["broken", "fast"]}


@pytest.mark.parametrize("native", [True, False])
def test_the_other_library_gets_bfloat16_where_the_processor_multiplies_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert benchmark.peer_dtype("auto") == ("bfloat16" if native else "float32")
    assert benchmark.peer_dtype("float32") == "float32"


def test_a_workload_is_the_same_every_time():
    work = Workload(problems=3, samples=2)
    assert work.prompts(100) == Workload(problems=3, samples=2).prompts(100)
    assert [len(group) for group in work.lengths()] == [2, 2, 2]
    tokens = sum(2 * len(prompt) for prompt in work.prompts(100)) + sum(map(sum, work.lengths()))
    assert sum(map(len, work.rows(100))) == tokens


@pytest.mark.parametrize(("size", "millions"), [("1M", 1), ("3M", 3), ("10M", 10), ("30M", 30)])
def test_a_size_has_the_parameters_of_its_name(size: str, millions: int):
    config = model_config(size, 512)
    block = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    assert MODEL_SIZES[size][0] == config.hidden_size
    parameters = config.num_hidden_layers * block + config.vocab_size * config.hidden_size
    assert parameters == pytest.approx(millions * 1e6, rel=0.2)


def test_a_missing_python_is_refused_before_anything_runs(tmp_path: Path):
    options: dict[str, Any] = {"problems": 1, "samples": 1, "threads": 1, "dtype": "auto", "source": "", "repeats": 1}
    with pytest.raises(SchoolError, match="is not a program"):
        benchmark.run_benchmark(
            "sampler", "vllm", None, {**options, "python": str(tmp_path / "none")}, lambda stage: None
        )


def test_a_benchmark_from_its_workload_to_its_table(monkeypatch: pytest.MonkeyPatch):
    """The server's sampler against the server itself: a backend of this package in both places."""
    monkeypatch.setattr(benchmark, "measure_limits", lambda threads: Limits(4e11, 2e11, 3e10))
    options = {"problems": 2, "samples": 2, "threads": 1, "dtype": "auto", "source": None, "python": None, "repeats": 1}
    stages: list[str] = []
    result = benchmark.run_benchmark("server", "sampler", "1M", options, stages.append)
    assert stages[0] == "writing the workload"
    assert stages[-1] == "measuring the limits of this machine"
    assert result["repeats"]["schoolhouse"][0]["tokens"] == result["repeats"]["sampler"][0]["tokens"] > 0
    assert "times the tokens/s of sampler" in benchmark.result_table(result)


@pytest.mark.skipif(
    load_kernels(64, torch.float32) is None, reason="without kernels torch's operations have other names"
)
def test_the_breakdown_finds_every_part():
    work = Workload(problems=1, samples=2, prompt_tokens=(8, 8), completion_tokens=(8, 8))
    breakdown = profile.time_breakdown("1M", 1, work)
    assert [*breakdown] == ["sampling, 1M", "learning, 1M"]
    for spent in breakdown.values():
        assert [*spent] == [*profile.PARTS]
        assert all(seconds > 0 for seconds in spent.values()), spent
