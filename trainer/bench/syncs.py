"""Counting host synchronisations below Python's surface, forward and backward: `with HostSyncs() as syncs: step()`.

HostSyncs sees torch's own operations, on any device; CudaSyncs what CUDA itself warns of, whoever called it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal", "aten::is_nonzero"}
_COPIES = {"aten::_to_copy", "aten::copy_", "aten::to"}


class HostSyncs(TorchDispatchMode):
    """Counts operations that make the host wait for the device, by name.

    On a CPU nothing waits, but the same operations run: the count is a GPU's, except for copies from the device, which only it has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._apart = False

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What happens inside is not counted."""
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not self._apart and (
            name in _WAITS
            or (name.startswith("aten::index") and _has_mask(args))
            or (name in _COPIES and _leaves_device(name, args, result))
        ):
            self.counts[name] += 1
        return result


def _has_mask(args: tuple[Any, ...]) -> bool:
    """Whether an index is boolean: its shape then depends on values, which the host must read."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _leaves_device(name: str, args: tuple[Any, ...], result: Any) -> bool:
    source = args[1] if name == "aten::copy_" else args[0]
    tensors = isinstance(source, torch.Tensor) and isinstance(result, torch.Tensor)
    return tensors and source.device.type != "cpu" and result.device.type == "cpu"


class CudaSyncs:
    """Counts what CUDA warns of as a wait for the device, by the line of Python that did it. Entered on a GPU only."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._caught: list[warnings.WarningMessage] = []

    def __enter__(self) -> CudaSyncs:
        self._catching = warnings.catch_warnings(record=True)
        self._caught = self._catching.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._catching.__exit__(*error)
        # The mode's first use in a process warns of itself too, which is no wait.
        waits = (one for one in self._caught if "called a synchronizing CUDA operation" in str(one.message))
        self.counts.update(f"{Path(one.filename).name}:{one.lineno}" for one in waits)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What happens inside is not counted."""
        before = len(self._caught)
        try:
            yield
        finally:
            del self._caught[before:]
