"""Packed attention as one operation that a compiler does not look into.

How many documents there are, and how long they are, differs from batch to batch and is known on the host: a compiler would make a graph of
each. Here lengths travel as a number in a tensor on the host, whose value no graph depends on, and are looked up when the operation runs.

On a GPU in half precision it is FlashAttention over all lengths at once, with dropout too. Elsewhere backward computes the attention once
more, as an operation keeps nothing but tensors of known shapes.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

from trainer.models.packed import attention, offsets_of

# Batches whose lengths are kept: many more than lie between a forward and its backward.
_KEPT = 1024
_numbers: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
_lengths: dict[int, tuple[int, ...]] = {}
_next = count()

# Bytes of a generator's state, on the host.
_STATE = {"cpu": len(torch.get_rng_state()), "cuda": 16}
_HALF = (torch.bfloat16, torch.float16)


def numbered(lengths: tuple[int, ...]) -> Tensor:
    """The number, `[1]` on the host, under which these lengths of a batch's documents are found."""
    if lengths in _numbers:
        _numbers.move_to_end(lengths)
        return _numbers[lengths]
    number = next(_next)
    _numbers[lengths], _lengths[number] = torch.tensor([number]), lengths
    if len(_numbers) > _KEPT:
        del _lengths[int(_numbers.popitem(last=False)[1])]
    return _numbers[lengths]


@torch.library.custom_op("shardloom::packed_attention", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Tensor,
    causal: bool,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `packed.attention`, of documents by their number. Returns `[1, tokens, heads, head]`, and two that backward reads: normalizers
    `[heads, tokens]` of FlashAttention, and what its dropout, or the generator, began with."""
    lengths = _lengths[int(documents)]
    if _flashes(query, value):
        out, normalizers, begun = torch.ops.aten._flash_attention_forward(
            *_rows(query, key, value),
            *_places(lengths, query.device),
            dropout,
            causal and window is None,
            False,
            **_limits(causal, window, scaling),
        )[:3]
        # Without dropout it is of no use, and of a shape that torch does not promise.
        begun = begun if dropout else torch.zeros(2, dtype=torch.uint64, device=query.device)
        return out.unsqueeze(0).contiguous(), normalizers, begun
    begun = _state(query.device) if dropout else query.new_empty(0, dtype=torch.uint8, device="cpu")
    out = attention(query, key, value, lengths, causal, window, dropout, scaling, None)
    return out.contiguous(), query.new_empty(0, dtype=torch.float32), begun


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, documents: Any, causal: Any, window: Any, dropout: float, scaling: Any) -> Any:
    _, heads, tokens, _ = query.shape
    out = query.new_empty(1, tokens, heads, value.shape[-1])
    if _flashes(query, value):
        return out, query.new_empty(heads, tokens, dtype=torch.float32), query.new_empty(2, dtype=torch.uint64)
    state = _STATE[query.device.type] if dropout else 0
    return out, query.new_empty(0, dtype=torch.float32), query.new_empty(state, dtype=torch.uint8, device="cpu")


@torch.library.custom_op("shardloom::packed_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Tensor,
    out: Tensor,
    normalizers: Tensor,
    begun: Tensor,
    causal: bool,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> list[Tensor]:
    """Gradients of query, key and value."""
    lengths = _lengths[int(documents)]
    if _flashes(query, value):
        rows, unused = _rows(query, key, value), torch.empty(0, device=query.device)
        found = torch.ops.aten._flash_attention_backward(
            gradient[0].contiguous(), *rows, out[0], normalizers, *_places(lengths, query.device), dropout,
            causal and window is None, begun, unused, **_limits(causal, window, scaling),
        )  # fmt: skip
        return [one.contiguous().transpose(0, 1).unsqueeze(0) for one in found]
    query, key, value = inputs = [one.detach().requires_grad_() for one in (query, key, value)]
    with torch.random.fork_rng([query.device] if query.is_cuda else [], enabled=dropout > 0), _recorded():
        if dropout:
            torch.cuda.set_rng_state(begun, query.device) if query.is_cuda else torch.set_rng_state(begun)
        again = attention(query, key, value, lengths, causal, window, dropout, scaling, None)
        return [one.transpose(1, 2).contiguous().transpose(1, 2) for one in torch.autograd.grad(again, inputs, gradient)]


@_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> list[Tensor]:
    # Heads of a token lie side by side, as the projections around it want them.
    return [one.new_empty(one.transpose(1, 2).shape).transpose(1, 2) for one in (query, key, value)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.settings = inputs[4:]


def _grad(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    query, key, value, documents, out, normalizers, begun = ctx.saved_tensors
    found = _backward(gradient, query, key, value, documents, out, normalizers, begun, *ctx.settings)
    return (*found, *(None,) * 5)


attend.register_autograd(_grad, setup_context=_keep)


def _flashes(query: Tensor, value: Tensor) -> bool:
    """Whether FlashAttention takes it."""
    size = query.shape[-1]
    fits = query.is_cuda and query.dtype in _HALF and size == value.shape[-1] and size % 8 == 0 and size <= 256
    return fits and os.environ.get("TRAINER_VARLEN") != "0" and flash_works()


# While the kernel is being tried, it is taken.
_trying: list[bool] = []


def flash_works() -> bool:
    """Whether this torch's FlashAttention over several lengths computes, forward and backward, what attention is; tried once.

    The operation is torch's own inner one, whose arguments differ between versions; what is not as it is here is not relied on.
    """
    return bool(_trying) or (torch.cuda.is_available() and _tried())


@lru_cache(maxsize=1)
def _tried() -> bool:
    lengths, shape = (5, 30, 13), (1, 2, 48, 64)
    device, found = torch.device("cuda", torch.cuda.current_device()), []
    _trying.append(True)
    try:
        for dtype in (torch.bfloat16, torch.float32):
            drawn = torch.Generator().manual_seed(0)
            inputs = [torch.randn(shape, generator=drawn).to(device, dtype).requires_grad_() for _ in range(3)]
            out = attend(*inputs, numbered(lengths), True, None, 0.0, None)[0]
            found.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
        works = all(torch.allclose(one.float(), two, atol=0.05, rtol=0.05) for one, two in zip(*found, strict=True))
        problem = "it computes something else"
    except Exception as error:  # whatever another version makes of these arguments
        works, problem = False, f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        _trying.pop()
    if not works:
        warnings.warn(f"FlashAttention over several lengths is not used: {problem}", stacklevel=2)
    return works


def _rows(*tensors: Tensor) -> list[Tensor]:
    """`[1, heads, tokens, head]` → `[tokens, heads, head]`, as views where the kernel can read them."""
    rows = (tensor[0].transpose(0, 1) for tensor in tensors)
    return [one if one.stride(-1) == 1 else one.contiguous() for one in rows]


def _places(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    offsets, longest = offsets_of(lengths, device), max(lengths)
    return offsets, offsets, longest, longest


def _limits(causal: bool, window: int | None, scaling: float | None) -> dict[str, Any]:
    # To the left and to the right, both ends included; -1: without limit.
    before = -1 if window is None else window - 1
    return {"scale": scaling, "window_size_left": before, "window_size_right": 0 if causal else before}


@contextmanager
def _recorded() -> Iterator[None]:
    """Within an operation of one's own autograd is left out, and here it is wanted."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in (DispatchKey.AutogradCPU, DispatchKey.AutogradCUDA, DispatchKey.ADInplaceOrView):
        exclude = exclude.remove(key)
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
