"""The table of kernels: one row for each case, the ratio of the speeds, and the machine."""

import shutil

import pytest
import torch

from schoolhouse.bench import kernels
from schoolhouse.bench.kernels import kernel_table, run_kernels
from schoolhouse.model import kernel_cases
from schoolhouse.types import SchoolError


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_each_row_compares_a_kernel_with_torch(monkeypatch: pytest.MonkeyPatch):
    cases = [
        (64, lambda: kernel_cases.rms_norm(9, 48, torch.float32)),
        (64, lambda: kernels._sampling(5, 70, torch.float32)),
    ]
    monkeypatch.setattr(kernels, "_cases", lambda dtype: iter(cases))
    stages: list[str] = []
    result = run_kernels(1, 3, torch.float32, stages.append)
    assert stages == ["RMSNorm, 9 x 48", "sampling, 5 x 70"]
    for row in result["rows"]:
        assert row["ratio"] > 0.0
        assert row["ratio"] == pytest.approx(row["torch_milliseconds"] / row["milliseconds"], rel=0.5)
    table = kernel_table(result).splitlines()
    assert table[1].startswith("RMSNorm")
    assert table[1].endswith("kernel")
    assert result["processor"] in table[-1]


def test_all_cases_have_a_name_and_a_size():
    made = [make() for head_dim, make in kernels._cases(torch.float32) if head_dim == 32]
    assert {case.kernel for case in made} == {"packed attention", "decode attention", "rotary embedding"}
    assert len({(case.kernel, case.size) for case in made}) == len(made)


def test_without_kernels_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "count_lanes", lambda: 0)
    with pytest.raises(SchoolError, match="install a C compiler"):
        run_kernels(1, 1, torch.float32, print)
