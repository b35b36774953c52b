"""Energy that a GPU has taken, by NVML's counter; nothing where there is none, or the package is not installed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Energy:
    """Joules of one device between two moments. It is the whole device's: whoever else computes on it is in it."""

    def __init__(self, device: torch.device):
        self._library, self._handle, self._before = None, None, 0
        if device.type == "cuda":
            # A GPU without the counter, a container without the driver's library, a package that is not installed: no figure.
            with contextlib.suppress(Exception):
                self._open(device)

    def _open(self, device: torch.device) -> None:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # By its own id: NVML does not know of CUDA_VISIBLE_DEVICES.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        self._library, self._handle = pynvml, handle

    def _millijoules(self) -> int:
        library: Any = self._library
        return int(library.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def begin(self) -> None:
        if self._handle is not None:
            self._before = self._millijoules()

    def end(self) -> float | None:
        return None if self._handle is None else (self._millijoules() - self._before) / 1000
