"""Which versions a run is computed with."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("shardloom", "torch", "triton", "transformers", "tokenizers", "accelerate", "deepspeed", "safetensors")


def versions() -> dict[str, str]:
    """Name → version of Python, of the packages and of NVIDIA's libraries that decide figures; what is not there is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | _libraries()


def _libraries() -> dict[str, str]:
    """What torch computes and talks with on GPUs, as it tells without touching one."""
    import torch

    if torch.version.cuda is None:
        return {}
    found = {"cuda": torch.version.cuda}
    # One that does not go with torch is told of by what computes with it.
    with contextlib.suppress(RuntimeError):
        found["cudnn"] = str(torch.backends.cudnn.version())
    if torch.distributed.is_nccl_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found
