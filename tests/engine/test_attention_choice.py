"""The kernel serves where it can be had and is right; elsewhere torch does, and it is said why."""

import sys

import pytest
import torch

from cluster.compiled import CompileError
from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import KvLayout
from engine.attention import Attention
from engine.attention_choice import choose_attention
from engine.config import ATTENTION, KERNEL_MISSING, AttentionForm
from engine.cpu_kernels import native_attention
from engine.cpu_kernels.native_attention import NativeAttention
from engine.paged_attention import PagedAttention

LAYOUT = KvLayout(num_layers=2, num_blocks=4, block_size=16, num_kv_heads=2, head_dim=16)


def choose(wanted: AttentionForm, device: str = "cpu") -> tuple[Attention, str]:
    measurements = Measurements()
    chosen = choose_attention(wanted, 4, LAYOUT, torch.device(device), torch.float32, measurements)
    return chosen, measurements.choices[ATTENTION]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(*_: object) -> None:
        raise CompileError("no C++ compiler")

    monkeypatch.setattr(native_attention, "library", library)


@pytest.mark.parametrize("wanted", ["auto", "native"])
def test_the_kernel_serves(wanted: AttentionForm) -> None:
    chosen, said = choose(wanted)
    assert isinstance(chosen, NativeAttention)
    assert said == f"native, {chosen.num_lanes} numbers at a time"


def test_torch_serves_as_it_is_told_or_off_the_cpu() -> None:
    assert isinstance(choose("torch")[0], PagedAttention)
    assert isinstance(choose("auto", "meta")[0], PagedAttention)
    with pytest.raises(ConfigError, match="the device is 'meta'"):
        choose("native", "meta")


def test_triton_serves_no_cpu() -> None:
    with pytest.raises(ConfigError, match="Triton's is for CUDA, and the device is 'cpu'"):
        choose("triton")


def test_without_triton_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("door", "attention_kernels", "triton_attention"):
        monkeypatch.delitem(sys.modules, f"engine.triton_kernels.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match=r"Triton is not installed \('pip install"):
        choose("triton")


def test_without_a_compiler_torch_serves(no_compiler: None) -> None:
    chosen, said = choose("auto")
    assert isinstance(chosen, PagedAttention)
    assert said == f"{KERNEL_MISSING}: no C++ compiler"


def test_what_is_wanted_by_name_and_not_to_be_had_is_an_error(no_compiler: None) -> None:
    with pytest.raises(ConfigError, match=r"no kernel: no C\+\+ compiler\. Mend that"):
        choose("native")


@pytest.mark.parametrize("factor", [1.001, torch.nan])
def test_a_kernel_that_computes_something_else_does_not_serve(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = NativeAttention.attend
    monkeypatch.setattr(NativeAttention, "attend", lambda *args: attend(*args) * factor)
    chosen, said = choose("auto")
    assert isinstance(chosen, PagedAttention)
    assert "what it computes differs by" in said
