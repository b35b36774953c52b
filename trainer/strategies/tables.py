"""The table of what a rank holds, by kind: dtype and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def table(held: Mapping[str, Iterable[torch.Tensor]], reductions: Iterable[torch.dtype]) -> list[dict[str, Any]]:
    """Rows {kind, dtype, bytes, device}, a row for each dtype of a kind; reductions hold nothing, but their dtype decides the sums.

    device: its type, such as `cpu`; of what lies in two places, `cpu+cuda`.
    """
    rows = []
    for kind, tensors in held.items():
        sizes: dict[torch.dtype, int] = {}
        devices: dict[torch.dtype, set[str]] = {}
        for tensor in tensors:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel() * tensor.element_size()
            devices.setdefault(tensor.dtype, set()).add(tensor.device.type)
        rows += [
            {"kind": kind, "dtype": name_of(dtype), "bytes": size, "device": "+".join(sorted(devices[dtype]))}
            for dtype, size in sizes.items()
        ]
    return rows + [{"kind": "reduction", "dtype": name_of(dtype), "bytes": 0} for dtype in sorted(reductions, key=str)]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
