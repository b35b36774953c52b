"""Energy that a GPU has taken, by NVML's counter; where there is none, why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Energy:
    """Joules of one device between two moments. It is the whole device's: whoever else computes on it is in it.

    missing: why there are none; "" where there are, and on a CPU, of which nobody asks.
    """

    def __init__(self, device: torch.device):
        self._library: Any = None
        self._handle, self._before, self.missing = None, 0, ""
        if device.type != "cuda":
            return
        try:
            import pynvml
        except ImportError:
            self.missing = "nvidia-ml-py is not installed; pip install 'shardloom[bench]'"
            return
        try:
            self._library, self._handle = pynvml, _counter(pynvml, device)
        except _Uncounted as error:
            self.missing = str(error)
        except pynvml.NVMLError as error:
            self.missing = f"NVML: {error}"

    def _millijoules(self) -> int:
        return int(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def begin(self) -> None:
        if self._handle is not None:
            self._before = self._millijoules()

    def end(self) -> float | None:
        return None if self._handle is None else (self._millijoules() - self._before) / 1000


class _Uncounted(Exception):
    """A device without a counter of its own."""


def _counter(library: Any, device: torch.device) -> Any:
    """NVML's handle of a device that counts. Raises NVMLError or _Uncounted."""
    import torch

    library.nvmlInit()
    if " MIG " in torch.cuda.get_device_name(device):
        raise _Uncounted("the device is a part of a GPU (MIG), and what NVML counts is of the whole")
    # By its own id: NVML does not know of CUDA_VISIBLE_DEVICES.
    handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    library.nvmlDeviceGetTotalEnergyConsumption(handle)
    return handle
