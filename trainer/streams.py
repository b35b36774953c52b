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
# The constants of splitmix64 as NumPy has them: made anew, they would cost more than what is done with them.
_FIRST, _SECOND, _GOLDEN_WORD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(_GOLDEN)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)


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


def mix_arrays(*words: int | str | NDArray[np.integer]) -> NDArray[np.uint64]:
    """`mix` of every element of arrays of one shape: mix_arrays(seed, "mask", rows)[i] == mix(seed, "mask", rows[i])."""
    state: NDArray[np.uint64] | np.uint64 = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in words:
            value = zlib.crc32(word.encode()) if isinstance(word, str) else word
            state = state + (_GOLDEN_WORD + _words(value))
            state = (state ^ (state >> _30)) * _FIRST
            state = (state ^ (state >> _27)) * _SECOND
            state = state ^ (state >> _31)
    return np.asarray(state)


def hash_array(seed: int | NDArray[np.integer], values: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A 64-bit hash of each value under one seed, or each under its own: a bijection of the values of a seed. Same shape."""
    seeds = _words(seed)
    with np.errstate(over="ignore"):
        # In place where it can be: over as many values as a batch has tokens, memory is what costs.
        word = seeds * np.uint64(2) + np.uint64(1) + np.asarray(values).astype(np.uint64)
        word ^= word >> _30
        word *= _FIRST
        word ^= seeds
        word += _GOLDEN_WORD
        word ^= word >> _27
        word *= _SECOND
        word ^= word >> _30
        word *= _FIRST
        word ^= word >> _31
        return word


def _words(value: int | NDArray[np.integer]) -> NDArray[np.uint64] | np.uint64:
    return np.uint64(value & _MASK) if isinstance(value, int) else np.asarray(value).astype(np.uint64, copy=False)


def uniform(seed: int | NDArray[np.integer], values: NDArray[np.integer]) -> NDArray[np.float64]:
    """A number in [0, 1) for each value under a seed, or each under its own."""
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
