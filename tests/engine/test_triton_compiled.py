"""Triton's compiler takes the kernels as they are launched, for devices that are not here: what the
interpreter lets pass (types, shapes, a tile that has no room) is found without a GPU."""

from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kv_cache import DTYPES, KvCache
from engine.triton_kernels import triton_attention, triton_layer_ops
from engine.triton_kernels.triton_attention import TritonAttention
from engine.triton_kernels.triton_layer_ops import TritonLayerOps
from tests.engine.attention_cases import draw_case
from tests.engine.model_sizes import spec_of

CPU = torch.device("cpu")
# Compute capability, and bytes of a multiprocessor's memory that one program may take: of data
# centers' cards, and of a desktop's.
CARDS = {80: 163 * 1024, 90: 227 * 1024, 89: 99 * 1024}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES |= {torch.int32: "i32", torch.int64: "i64"}
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


class Launches:
    """Takes the place of `launch`, and compiles what would have run."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self._most_shared = CARDS[capability]
        self.names: list[str] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, **said: Any) -> None:
        assert all(0 < size < 2**16 for size in grid[1:])
        options = {key: value for key, value in said.items() if key in OPTIONS}
        constants = {key: value for key, value in said.items() if key not in OPTIONS}
        names = kernel.arg_names
        types = dict(zip(names, map(type_of, args), strict=False))
        aligned = [["tt.divisibility", 16]]
        compiled = triton.compile(
            ASTSource(
                fn=kernel,
                signature={name: types.get(name, "constexpr") for name in names},
                constexprs={(names.index(name),): value for name, value in constants.items()},
                attrs={(names.index(n),): aligned for n, kind in types.items() if kind[0] == "*"},
            ),
            target=self._target,
            options=options | {"enable_fp_fusion": True},
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= self._most_shared
        self.names.append(kernel.fn.__name__)


def type_of(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return "*" + TYPES[argument.dtype]
    if isinstance(argument, float):
        return "fp32"
    return "i32" if abs(argument) < 2**31 else "i64"


@pytest.fixture
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiling = Launches(request.param)
    for module in (triton_attention, triton_layer_ops):
        monkeypatch.setattr(module, "launch", compiling)
        monkeypatch.setattr(module, "check_device", lambda device: None)
    return compiling


def attend(
    heads: tuple[int, int, int], dtype: str, kv_dtype: str, window: int | None, cap: float | None
) -> None:
    for spans in ([(300, 1)], [(300, 1), (20, 6)]):
        case = draw_case(*heads, window=window, dtype=kv_dtype, spans=spans)
        attention = TritonAttention(case.num_heads, case.layout, CPU, DTYPES[dtype], cap)
        plan = attention.plan(case.queries)
        attention.attend(0, plan, case.qkv.to(DTYPES[dtype]), case.cache)


@pytest.mark.slow
@pytest.mark.parametrize("launches", [90], indirect=True)
def test_attention_compiles(launches: Launches) -> None:
    attend((32, 8, 128), "bfloat16", "bfloat16", None, None)
    assert {*launches.names} == {"attend_units", "merge_partials"}


@pytest.mark.slow
@pytest.mark.parametrize("launches", [90], indirect=True)
def test_what_lies_between_products_compiles(launches: Launches) -> None:
    compile_layer_ops("bfloat16", "bfloat16")
    assert {*launches.names} == {"add_and_norm", "rotate_and_keep", "gate_and_multiply"}


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("launches", CARDS, indirect=True)
def test_every_kind_compiles_for_every_card(launches: Launches) -> None:
    for dtype, kv_dtype in (("float32", "float32"), ("float16",) * 2, ("float32", "bfloat16")):
        for dim in (64, 80, 128, 256):
            attend((14, 2, dim), dtype, kv_dtype, 100, 30.0)
            attend((32, 1, dim), dtype, kv_dtype, None, None)
        compile_layer_ops(dtype, kv_dtype)


def compile_layer_ops(dtype: str, kv_dtype: str) -> None:
    spec = spec_of(4096, 14336, 32, 8, 128)
    cache = KvCache(spec.kv_layout(num_blocks=1, block_size=16, dtype=kv_dtype), None, CPU)
    ops, kind = TritonLayerOps(spec, cache), DTYPES[dtype]
    hidden = torch.zeros(2, 4096, dtype=kind)
    ops.norm(hidden, None, hidden[0])
    ops.norm(hidden, hidden, hidden[0])
    ops.gate(torch.zeros(2, 2 * 14336, dtype=kind))
    qkv, slots = torch.zeros(2, 48, 128, dtype=kind), torch.arange(2)
    for norms in (None, torch.zeros(40, 128, dtype=kind)):
        ops.rotate(0, qkv, norms, ops.rotations(slots), slots)
