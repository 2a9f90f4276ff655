"""Asks whether the kernel copies between processes (process_vm_readv): some containers forbid it.

UCX asks the same of itself, and then writes into a peer of the same machine without its help.
"""

import ctypes
import functools
import os


class _Memory(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@functools.cache
def kernel_copies() -> bool:
    """Asked once, of our own memory: what is forbidden is forbidden there, too."""
    source, target = ctypes.create_string_buffer(b"x", 1), ctypes.create_string_buffer(1)
    theirs, ours = (_Memory(ctypes.addressof(each), 1) for each in (source, target))
    libc = ctypes.CDLL(None)
    moved: int = libc.process_vm_readv(
        os.getpid(), ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0
    )
    return moved == 1
