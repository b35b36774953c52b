"""torch's kernel for documents of several lengths, against one call a length; on a GPU only, where it is used."""

from __future__ import annotations

import pytest
import torch

from trainer.models import packed

LENGTHS = (7, 120, 64, 7, 300, 1, 13)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on GPUs only")


class Module(torch.nn.Module):
    def __init__(self, causal: bool):
        super().__init__()
        self.is_causal = causal


def attend(kernel, monkeypatch, causal, dtype, scaling, window):
    """Output and gradients of packed attention, with the kernel or without."""
    monkeypatch.setattr(packed, "varlen_kernel", lambda window: kernel)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 4, sum(LENGTHS), 64, generator=generator).to("cuda", dtype).requires_grad_() for _ in range(3)]
    out, _ = packed.packed_attention(Module(causal).train(), *tensors, None, scaling=scaling, sliding_window=window, doc_lens=LENGTHS)
    out.backward(torch.randn(out.shape, generator=generator).to("cuda", dtype))
    return [out.detach(), *(tensor.grad for tensor in tensors)]


@needs_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("window", [None, 17])
def test_c14_one_call_for_all_lengths_is_each_document_alone(monkeypatch, causal, dtype, scaling, window):
    kernel = packed.varlen_kernel(window is not None)
    assert kernel is not None, "this torch should have torch.nn.attention.varlen"
    for mine, reference in zip(
        attend(kernel, monkeypatch, causal, dtype, scaling, window), attend(None, monkeypatch, causal, dtype, scaling, window), strict=True
    ):
        apart = float((mine.float() - reference.float()).norm() / reference.float().norm())
        assert apart < (2e-2 if dtype is torch.bfloat16 else 3e-3)


@needs_gpu
def test_offsets_are_made_without_waiting():
    """Once a batch, from page-locked memory; `error` makes CUDA refuse a synchronisation."""
    torch.zeros(1).pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    try:
        offsets = packed.offsets_of(LENGTHS, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert offsets is packed.offsets_of(LENGTHS, torch.device("cuda")) and offsets.tolist()[-1] == sum(LENGTHS)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 17])
def test_the_kernel_is_called_as_this_torch_wants_it(causal, window):
    """Shapes only, without a device: the arguments are those of the installed torch."""
    kernel = packed.varlen_kernel(window is not None)
    assert kernel is not None
    query = torch.empty(1, 4, sum(LENGTHS), 64, dtype=torch.bfloat16, device="meta")
    assert kernel(query, query, query, LENGTHS, packed.Seen(causal, window), 0.3).shape == (1, sum(LENGTHS), 4, 64)


def test_offsets_start_at_zero_and_end_at_the_last_token():
    assert packed.offsets_of((3, 1, 5), torch.device("cpu")).tolist() == [0, 3, 4, 9]
    assert packed.offsets_of((3, 1, 5), torch.device("cpu")).dtype == torch.int32
