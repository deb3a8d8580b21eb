"""Benchmarks: repeats in turn, medians and ratios, and the log of a backend that ends early."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from schoolhouse.bench import benchmark, profile
from schoolhouse.bench.limits import Limits
from schoolhouse.bench.workload import MODEL_SIZES, Workload, model_config, write_workload
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.model.kernel_build import load_kernels
from schoolhouse.runs import progress_display
from schoolhouse.runs.progress import command_progress, set_quiet
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
    assert stages[0] == "starting schoolhouse with a first repeat that is not measured"
    assert stages[1].startswith("schoolhouse is ready after ")
    assert stages[4:7] == [
        "repeat 1 of 3: schoolhouse",
        "repeat 1 of 3: fast",
        "repeat 1: schoolhouse 2.00 s, fast 1.00 s; 0.50 times the tokens/s",
    ]
    assert stages[-1] == "repeat 3: schoolhouse 2.00 s, fast 1.00 s; 0.50 times the tokens/s"


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


def test_a_terminal_shows_where_the_race_is(backends: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(progress_display, "_DRAW_SECONDS", 0.002)
    monkeypatch.setattr(progress_display, "_FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress_display, "_LINE_SECONDS", 0.0)
    (backends / "sampler_fast.py").write_text(BACKEND.replace("lambda:", "lambda: __import__('time').sleep(.1) or"))
    set_quiet(False)
    with command_progress("school bench"):
        benchmark.run_repeats(backends, "sampler", "fast", 1)
    shown = capsys.readouterr().err
    assert "sampler against fast: start and first repeat of schoolhouse, not measured, 0 s\n" in shown
    assert "sampler against fast: repeat 1 of 1, fast, 0 s\n" in shown


RACE = """
import sys
from pathlib import Path
from schoolhouse.bench import benchmark
from schoolhouse.cli.main import main
benchmark.BACKENDS = Path(sys.argv[1])
benchmark.measure_limits = lambda threads: sys.exit("the limits are not measured after Ctrl-C")
sys.exit(main(["bench", "sampler", "--against", "fast", "--size", "1M", "--repeats", "50", "--json", sys.argv[2]]))
"""


@pytest.mark.parametrize("pairs", [0, 2])
def test_ctrl_c_keeps_the_pairs_that_are_complete(backends: Path, tmp_path: Path, pairs: int):
    slow = BACKEND.replace('work["slow"]', "1.0").replace("lambda:", "lambda: __import__('time').sleep(.2) or")
    for name in ("schoolhouse", "fast"):
        (backends / f"sampler_{name}.py").write_text(slow)
    file = tmp_path / "result.json"
    command = [sys.executable, "-c", RACE, str(backends), str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "SCHOOLHOUSE_QUIET"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, start_new_session=True) as race:
        assert race.stderr
        for line in race.stderr:
            if line.startswith(f"school bench: repeat {pairs}: " if pairs else "school bench: starting fast"):
                break
        os.killpg(race.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        out, err = race.communicate(timeout=60)
    assert race.returncode == 130, err
    if pairs:
        result = json.loads(file.read_text())
        assert result["interrupted"]
        assert len(result["ratios"]) == len(result["repeats"]["fast"]) == len(result["repeats"]["schoolhouse"]) == pairs
        assert "stopped after 2 complete pairs of repeats" in out
        assert f"the results of the complete repeats are in {file}" in err
    else:
        assert "stopped before the first pair of repeats was complete" in err
        assert not file.exists()


@pytest.mark.parametrize("native", [True, False])
def test_the_other_library_gets_bfloat16_where_the_processor_multiplies_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert benchmark.peer_dtype("auto") == ("bfloat16" if native else "float32")
    assert benchmark.peer_dtype("float32") == "float32"


def test_a_race_with_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "measure_limits", lambda threads: Limits(4e11, 2e11, 3e10))
    write_workload(Workload("1M"), tmp_path)
    options = {"threads": 1, "dtype": "auto", "source": None, "python": None, "repeats": 1, "problems": 32}
    options |= {"samples": 8, "model": str(tmp_path / "model"), "rows": 2, "max_new_tokens": 5}
    shutil.copytree(benchmark.BACKENDS, tmp_path / "backends")
    shutil.copy(tmp_path / "backends" / "sampler_schoolhouse.py", tmp_path / "backends" / "sampler_twin.py")
    monkeypatch.setattr(benchmark, "BACKENDS", tmp_path / "backends")
    result = benchmark.run_benchmark("sampler", "twin", None, options, lambda stage: None)
    assert result["work"]["size"] == "model"
    assert result["repeats"]["twin"][0]["tokens"] == 2 * 5
    assert result["model_limits"]["rows"] == 2
    assert "reached: schoolhouse " in benchmark.result_table(result)


@pytest.mark.parametrize(
    ("kind", "peer", "size", "more", "message"),
    [
        ("server", "sampler", None, {"model": "m"}, "--model does not work with `server`"),
        ("sampler", "vllm", "3M", {"model": "m"}, "--size 3M and --model m cannot be combined"),
        ("sampler", "vllm", None, {"model": "."}, "is not a model folder"),
        ("grpo", "trl", None, {"weights": "int8"}, "--weights does not work with `grpo`"),
        ("sampler", "vllm", None, {"lora_rank": 8}, "--lora_rank does not work with `sampler`"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    kind: str, peer: str, size: str | None, more: dict[str, Any], message: str, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchoolError, match=message):
        benchmark.run_benchmark(kind, peer, size, more, lambda stage: None)


def test_a_workload_of_a_real_model_has_no_special_tokens(tmp_path: Path):
    (tmp_path / "first").mkdir()
    write_workload(Workload("1M"), tmp_path / "first")
    write_workload(Workload("model", problems=8), tmp_path, model=tmp_path / "first" / "model")
    work, tokenizer = json.loads((tmp_path / "work.json").read_text()), Tokenizer.load(tmp_path / "first" / "model")
    used = {token for prompt in [*work["prompts"], *work["rows"]] for token in prompt}
    assert not used & set(tokenizer.special_tokens.values())
    assert work["vocab_size"] == MODEL_SIZES["1M"][4]
    assert (tmp_path / "model" / "config.json").is_file()


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
