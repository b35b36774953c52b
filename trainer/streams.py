"""Every random number: pure functions of named integers. No generator's state is ever stored.

Order, masks and partners come from hashes of the sample, so they do not change with the number of devices. Draws inside the model
(initialization, dropout) come from torch's generators, reseeded from (seed, purpose, step, micro-batch, data rank).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _finalize(word: int) -> int:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): a bijection of 64-bit words that mixes every bit."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def mix(*words: int | str) -> int:
    """One 64-bit hash of integers and names, in order."""
    state = 0
    for word in words:
        value = zlib.crc32(word.encode()) if isinstance(word, str) else int(word) & _MASK
        state = _finalize((state + _GOLDEN + value) & _MASK)
    return state


def hash_array(seed: int, values: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A 64-bit hash of each value under a seed; same shape."""
    with np.errstate(over="ignore"):
        word = np.asarray(values).astype(np.uint64) + np.uint64((seed * 2 + 1) & _MASK)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ np.uint64(seed & _MASK)) + np.uint64(_GOLDEN)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        return word ^ (word >> np.uint64(31))


def uniform(seed: int, values: NDArray[np.integer]) -> NDArray[np.float64]:
    """A number in [0, 1) for each value under a seed."""
    return (hash_array(seed, values) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_all(seed: int, purpose: str, step: int = 0, micro: int = 0, data_rank: int = 0) -> None:
    """Reseed torch's generators (and Python's and NumPy's, for code of others) for one purpose at one place of a run."""
    import random

    import torch

    word = mix(seed, purpose, step, micro, data_rank)
    seed = word & (_MASK >> 1)
    if purpose == "step":
        # Dropout alone draws in a step. torch.manual_seed would also take a stack trace for each kind of device that is not in use,
        # a third of a millisecond in all; here it is microseconds, and no synchronisation.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
        return
    torch.manual_seed(seed)
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
