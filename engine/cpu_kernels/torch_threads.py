"""The way of a kernel into torch's own pool of threads."""

import ctypes
from pathlib import Path

import torch

from engine.kernel_error import NoKernelError


def openmp_entry() -> int:
    """Finds the way into torch's own pool of threads, so that the kernel has no second one.
    *Raises* NoKernelError where torch was built without OpenMP."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        entry = ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError) as error:
        raise NoKernelError("torch has no OpenMP here") from error
    assert entry is not None
    return entry
