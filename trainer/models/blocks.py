"""The transformer blocks of a model, whatever its family: what is sharded, recomputed or compiled one by one."""

from __future__ import annotations

from torch import nn


def blocks(module: nn.Module) -> list[nn.Module]:
    """Members of the outermost lists of modules, in order."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found
