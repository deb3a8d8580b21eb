"""The number type of matrix products follows the processor."""

import platform

import pytest
import torch

from schoolhouse.model import device
from schoolhouse.model.device import multiplies_bfloat16, pick_dtype

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)


def set_x86(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "dtype"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_bfloat16_only_where_x86_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, dtype: torch.dtype
) -> None:
    set_x86(monkeypatch, amx, avx512_bf16)
    assert pick_dtype("auto", CPU) == dtype


@pytest.mark.parametrize(("isa", "native"), [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True)])
def test_instructions_that_onednn_must_not_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, isa: str, native: bool
) -> None:
    set_x86(monkeypatch, False, True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert multiplies_bfloat16(CPU) is native


@pytest.mark.parametrize(("flags", "native"), [({"asimd", "bf16"}, True), ({"asimd"}, False)])
def test_bfloat16_on_arm(monkeypatch: pytest.MonkeyPatch, flags: set[str], native: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(device, "processor_flags", lambda: frozenset(flags))
    assert multiplies_bfloat16(CPU) is native


def test_a_gpu_that_emulates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_dtype("auto", torch.device("cuda")) == torch.float32
