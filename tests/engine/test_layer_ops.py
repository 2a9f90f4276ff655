"""What layers compute between their products is the same by the kernel and by torch."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cluster.compiled import CompileError
from engine.cpu_kernels import native_layer_ops
from engine.cpu_kernels.native_layer_ops import NativeLayerOps
from engine.kv_cache import DTYPES, KvCache
from engine.layer_ops import TorchLayerOps
from engine.layer_ops_choice import choose_layer_ops
from engine.model_spec import ModelSpec
from tests.engine.model_sizes import spec_of

CPU = torch.device("cpu")
# Sizes: hidden, intermediate, heads, K/V heads, head: vectors divide the first ones only.
SHAPES = [(512, 1536, 8, 4, 64), (96, 256, 14, 2, 80), (33, 7, 3, 3, 6), (1, 1, 1, 1, 2)]
ROWS = (1, 3, 16, 100)

torch.set_num_threads(1)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def cache_of(spec: ModelSpec, dtype: str) -> KvCache:
    return KvCache(spec.kv_layout(num_blocks=16, block_size=8, dtype=dtype), None, CPU)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_torch(shape: tuple[int, ...], dtype: str, threads: None) -> None:
    spec = spec_of(*shape)
    caches = [cache_of(spec, dtype) for _ in range(2)]
    native, plain = NativeLayerOps(spec, caches[0]), TorchLayerOps(spec, caches[1])
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    weight, norms = drawn(spec.hidden_size), drawn(heads + kv_heads, dim)
    for rows in ROWS:
        for added in (None, drawn(rows, spec.hidden_size)):
            both = [drawn(rows, spec.hidden_size, 2)[..., 0].contiguous() for _ in range(2)]
            normed = [
                ops.norm(hidden, added, weight)
                for ops, hidden in zip((native, plain), both, strict=True)
            ]
            torch.testing.assert_close(both[0], both[1], atol=0, rtol=0)
            torch.testing.assert_close(normed[0], normed[1], atol=2e-5, rtol=1e-5)
        gate_up = drawn(rows, 2 * spec.intermediate_size) * 5
        torch.testing.assert_close(native.gate(gate_up), plain.gate(gate_up), atol=1e-5, rtol=1e-5)
        positions = torch.arange(rows) * 1007
        slots = torch.randperm(128, generator=torch.Generator().manual_seed(rows))[:rows]
        for own_norms in (None, norms):
            qkv = drawn(rows, heads + 2 * kv_heads, dim)
            other = qkv.clone()
            native.rotate(1, qkv, own_norms, native.rotations(positions), slots)
            plain.rotate(1, other, own_norms, plain.rotations(positions), slots)
            torch.testing.assert_close(qkv, other, atol=2e-5, rtol=1e-5)
            kept = qkv[:, heads:].view(rows, 2, kv_heads, dim).transpose(0, 1)
            assert torch.equal(caches[0].layers[1][:, slots], kept.to(DTYPES[dtype]))
    assert not caches[0].layers[0].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_kept_as_torch_rounds_them(dtype: str) -> None:
    spec = spec_of(2, 2, 1, 1, 1024)
    cache = cache_of(spec, dtype)
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    finite = halves[halves.isfinite()]
    steps = torch.tensor([0.0, 2**-25, 2**-24, 3 * 2**-25, 6e4, 65519, 65520, 7e4, 1e38, torch.inf])
    numbers = torch.cat([finite * (1 + 2**-11), finite * (1 + 2**-11 + 2**-20), steps, -steps])
    numbers = numbers[: len(numbers) // 1024 * 1024]
    for some in torch.cat([numbers, -steps, torch.zeros(1024 - len(steps))]).split(1024):
        qkv = some.repeat(3).view(1, 3, 1024).clone()
        ops = NativeLayerOps(spec, cache)
        ops.rotate(0, qkv, None, ops.rotations(torch.tensor([0])), torch.tensor([5]))
        wanted = some.to(DTYPES[dtype]).view(torch.int16)
        assert torch.equal(cache.layers[0][1, 5, 0].view(torch.int16), wanted)


def test_tokens_are_embedded_that_the_model_knows() -> None:
    spec = spec_of(*SHAPES[0])
    ops, table = NativeLayerOps(spec, cache_of(spec, "float32")), drawn(9, 512)
    assert torch.equal(ops.embed(torch.tensor([8, 0, 8]), table), table[[8, 0, 8]])
    for unknown in (9, -1):
        with pytest.raises(IndexError, match="knows 9 tokens"):
            ops.embed(torch.tensor([0, unknown]), table)


def test_a_gate_is_right_far_out() -> None:
    spec = spec_of(*SHAPES[0])
    gate = torch.tensor([-1e4, -200.0, -88.0, -20.0, -0.0, 0.0, 20.0, 88.0, 200.0, 1e30] * 4)
    gate_up = torch.stack([gate, torch.ones(40)]).view(1, 80)
    found = NativeLayerOps(spec, cache_of(spec, "float32")).gate(gate_up)
    torch.testing.assert_close(found[0], torch.nn.functional.silu(gate), atol=1e-30, rtol=1e-5)


def test_a_row_has_the_same_bits_in_any_batch(threads: None) -> None:
    spec = spec_of(*SHAPES[0])
    ops = NativeLayerOps(spec, cache_of(spec, "float32"))
    hidden, gate_up, weight = drawn(100, 512), drawn(100, 3072), drawn(512)
    normed, gated = ops.norm(hidden.clone(), hidden, weight), ops.gate(gate_up)
    for rows in (1, 7):
        assert torch.equal(ops.gate(gate_up[:rows]), gated[:rows])
        own = hidden[-rows:].clone()
        assert torch.equal(ops.norm(own, own.clone(), weight), normed[-rows:])


def test_torch_serves_where_the_kernel_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise CompileError("no C++ compiler")

    spec = spec_of(*SHAPES[1])
    cache = cache_of(spec, "bfloat16")
    assert isinstance(choose_layer_ops(spec, cache, torch.float32), NativeLayerOps)
    assert isinstance(choose_layer_ops(spec, cache, torch.bfloat16), TorchLayerOps)
    with monkeypatch.context() as patch:
        patch.setattr(NativeLayerOps, "gate", lambda self, gate_up: gate_up[:, ::2] * torch.nan)
        assert isinstance(choose_layer_ops(spec, cache, torch.float32), TorchLayerOps)
    monkeypatch.setattr(native_layer_ops, "library", missing)
    assert isinstance(choose_layer_ops(spec, cache, torch.float32), TorchLayerOps)
