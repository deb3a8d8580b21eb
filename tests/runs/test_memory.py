"""The free memory is the smallest of all limits: the machine, the container, the address space and the user's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from schoolhouse.runs.memory import machine_memory, size_text
from schoolhouse.types import SchoolError

GB = 1 << 30
MEMINFO = f"MemTotal: {16 * GB >> 10} kB\nMemFree: 1 kB\nMemAvailable: {12 * GB >> 10} kB\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(group: str, limit: object, used: int = GB, reclaimable: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{group}".rstrip("/")
    stat = f"anon 5\ninactive_file {reclaimable}\n"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def version_1(group: str, limit: int, used: int = GB) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory/{group}".rstrip("/")
    names = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": "total_inactive_file 0"}
    return {f"{folder}/{name}": f"{value}\n" for name, value in names.items()}


def memory_of(root: Path, files: dict[str, str], cgroup: str = "0::/\n") -> tuple[int, int]:
    return machine_memory(write(root, {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}))


def test_a_machine_without_limits(tmp_path):
    assert memory_of(tmp_path, {}) == (12 * GB, 16 * GB)


def test_a_container_of_version_2_that_sees_its_group_as_the_root(tmp_path):
    assert memory_of(tmp_path, version_2("", 4 * GB)) == (3 * GB, 4 * GB)


def test_cached_file_pages_of_a_container_count_as_free(tmp_path):
    assert memory_of(tmp_path, version_2("", 4 * GB, used=3 * GB, reclaimable=2 * GB)) == (3 * GB, 4 * GB)


def test_a_group_without_a_limit_of_its_own_has_the_limit_of_its_parent(tmp_path):
    files = {**version_2("pods/one", "max"), **version_2("pods", 6 * GB, used=4 * GB)}
    assert memory_of(tmp_path, files, "0::/pods/one\n") == (2 * GB, 6 * GB)


def test_the_tightest_of_nested_groups_counts(tmp_path):
    files = {**version_2("pods/one", 2 * GB), **version_2("pods", 6 * GB, used=5 * GB + 1)}
    assert memory_of(tmp_path, files, "0::/pods/one\n") == (GB - 1, 2 * GB)


@pytest.mark.parametrize("group", ["docker/abc", ""])
def test_a_container_of_version_1(tmp_path, group):
    assert memory_of(tmp_path, version_1(group, 3 * GB), "5:cpu:/\n4:memory:/docker/abc\n") == (2 * GB, 3 * GB)


def test_version_1_without_a_limit(tmp_path):
    unlimited = version_1("", 9_223_372_036_854_771_712)
    assert memory_of(tmp_path, unlimited, "4:memory:/x\n0::/\n") == (12 * GB, 16 * GB)


def test_a_full_container_has_a_little_free_memory_and_not_a_negative_number(tmp_path):
    free, total = memory_of(tmp_path, version_2("", 4 * GB, used=5 * GB))
    assert 0 < free < GB
    assert total == 4 * GB


def test_damaged_files_set_no_limit(tmp_path):
    files = {**version_2("", "4 apples"), "proc/self/cgroup": "nonsense\n"}
    assert memory_of(tmp_path, {}, "nonsense\n") == (12 * GB, 16 * GB)
    assert memory_of(tmp_path / "other", files) == (12 * GB, 16 * GB)


def test_the_variable_sets_the_memory_of_this_process(monkeypatch):
    monkeypatch.setenv("SCHOOLHOUSE_MEMORY_GB", "1.5")
    free, total = machine_memory()
    assert total == 1_500_000_000
    assert 0 < free < 1_500_000_000


@pytest.mark.parametrize("text", ["much", "0", "-3", "nan", "inf"])
def test_a_wrong_value_of_the_variable_is_an_error(monkeypatch, text):
    monkeypatch.setenv("SCHOOLHOUSE_MEMORY_GB", text)
    with pytest.raises(SchoolError, match=f"SCHOOLHOUSE_MEMORY_GB is `{text}`: give a number of GB above 0"):
        machine_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce RLIMIT_AS")
def test_the_limit_of_the_address_space_counts():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))\n"
        "from schoolhouse.runs.memory import machine_memory; print(*machine_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    free, total = map(int, done.stdout.split())
    assert total == 500 << 20
    assert 0 < free < 500 << 20


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(12_340_000_000, "12.3 GB"), (340_000_000, "340 MB"), (1_230_000, "1.2 MB")]
)
def test_sizes(num_bytes, text):
    assert size_text(num_bytes) == text
