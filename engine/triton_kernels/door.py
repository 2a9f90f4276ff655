"""The door to Triton: the language that kernels here are written in, and what can go wrong when one
is compiled and launched. Interpreted on a CPU where TRITON_INTERPRET=1 was set before the start.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.kernel_error import NoKernelError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise NoKernelError("Triton is not installed ('pip install penstock[gpu]')") from error

__all__ = ["IS_INTERPRETED", "check_device", "first_launches", "jit", "launch", "power_of_2", "tl"]

jit = triton.jit
IS_INTERPRETED = bool(triton.knobs.runtime.interpret)
# By Triton itself, its driver, and the C compiler with which it builds what launches a kernel.
_FAILURES = (triton.TritonError, RuntimeError, OSError, subprocess.SubprocessError)


def check_device(device: torch.device) -> None:
    """*Raises* NoKernelError where no kernel of Triton's runs."""
    if device.type != "cuda" and not (IS_INTERPRETED and device.type == "cpu"):
        raise NoKernelError(
            f"Triton's is for CUDA, and the device is '{device}' (TRITON_INTERPRET=1 has it"
            " interpreted on a CPU, to try it)"
        )


@contextmanager
def first_launches() -> Iterator[None]:
    """Turns what fails in first launches into NoKernelError."""
    try:
        yield
    except _FAILURES as error:
        first_line = str(error).strip().partition("\n")[0]
        raise NoKernelError(f"Triton failed: {type(error).__name__}: {first_line}") from error


def launch(
    kernel: Any, grid: tuple[int, ...], first: Tensor, *args: object, **options: object
) -> None:
    """Queues a kernel on the current stream of the device on which `first` lies, compiled for these
    options at its first launch."""
    # Whatever device is this thread's.
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        # Fusion is said because what is meant without differs from version to version of Triton.
        kernel[grid](first, *args, **options, enable_fp_fusion=True)


def power_of_2(number: int) -> int:
    """The least that is not below `number`."""
    return int(triton.next_power_of_2(number))
