"""A pool on a device, as tests look at it: like a numpy array of its bytes."""

from typing import Any

import numpy as np
import torch

from kv_transfer.device_pool import DevicePool


class DeviceBytes:
    def __init__(self, pool: DevicePool) -> None:
        self._tensor = pool.buffer

    def __setitem__(self, where: Any, what: Any) -> None:
        host = self._tensor.cpu()
        host[where] = torch.as_tensor(what, dtype=torch.uint8)
        self._tensor.copy_(host)
        if self._tensor.is_cuda:
            torch.cuda.synchronize(self._tensor.device)  # transports have streams of their own

    def __getitem__(self, where: Any) -> Any:
        return np.asarray(self)[where]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._tensor.cpu().numpy()

    def any(self) -> bool:
        return bool(self._tensor.any())
