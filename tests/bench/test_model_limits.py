"""The limits of sampling with a given model."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from schoolhouse.bench.model_limits import _limits, describe_limits, measure_model_limits, rows_of_steps
from schoolhouse.bench.workload import Workload, write_workload


def test_the_rows_of_each_decode_step():
    assert rows_of_steps([1, 3, 4]) == [2, 2, 1]  # the prompt gives the first token; the last token is not read
    assert rows_of_steps([1]) == []


def test_the_limits_of_matrices_with_known_times():
    weights = [torch.zeros(4, 2), torch.zeros(8, 4)]

    def seconds_of_pass(weights: Sequence[torch.Tensor], rows: int) -> float:
        return 1.0 + rows * len(weights)

    limits = _limits(weights, [10, 10, 4], 1024, 20.0, seconds_of_pass)
    prefill = 2 * (1.0 + 512)  # without the last matrix
    assert limits.matmul_seconds == pytest.approx(21 + 21 + 9 + prefill)
    assert limits.weight_bytes == 4 * 40
    assert limits.memory_seconds == pytest.approx(3 * 160 / 20.0 + prefill)
    assert limits.flops == pytest.approx(2 * 40 * 10 / 21)
    assert _limits(weights, [1], 0, 20.0, seconds_of_pass, "int8").memory_seconds == pytest.approx(40 / 20.0)
    lines = describe_limits({**limits._asdict(), "matmul_seconds": 7.0}, {"schoolhouse": 10.0, "peer": 70.0}, 21)
    assert "at most 3 tokens/s for this workload; reached: schoolhouse 70%, peer 10%" in lines[0]


def test_the_limits_of_a_model_in_a_folder(tmp_path: Path):
    work = Workload(size="1M", problems=2, samples=2, prompt_tokens=(8, 8), completion_tokens=(4, 4))
    write_workload(work, tmp_path)
    limits = measure_model_limits(tmp_path / "model", json.loads((tmp_path / "work.json").read_text()), 1e10)
    assert limits.rows == 4
    assert limits.weight_bytes >= 2 * 0.9e6
    assert 0 < limits.matmul_seconds < 10
