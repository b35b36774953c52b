"""Kernels for documents of several lengths, against plain attention: torch's own, and FlashAttention in a compiled block. On a GPU; what
the operation of a compiled block is elsewhere, on a CPU too."""

from __future__ import annotations

import pytest
import torch

from trainer.models import opaque, packed

LENGTHS = (7, 120, 64, 7, 300, 1, 13)
HALF = (torch.bfloat16, torch.float16)
# Of the norm of the difference, over that of what plain attention in fp32 gives.
NEAR = {torch.bfloat16: 4e-2, torch.float16: 6e-3, torch.float32: 1e-3}
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
PLACES = [pytest.param("cpu", torch.float32), *(pytest.param("cuda", dtype, marks=[pytest.mark.gpu, no_gpu]) for dtype in NEAR)]


def needs_gpu(test):
    return pytest.mark.gpu(no_gpu(test))


def apart(one, other):
    return float((one.double().cpu() - other.double().cpu()).norm() / other.double().cpu().norm())


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
        assert apart(mine, reference) < NEAR[dtype]


def of_a_block(inputs, settings):
    """Output and gradients of the operation that a compiled block attends by. inputs: queries, keys, values, gradient from above."""
    *tensors, above = inputs
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    out = opaque.attend(*tensors, opaque.numbered(LENGTHS), *settings)[0]
    torch.rand(3, device=above.device)  # what else draws between forward and backward
    return [out.detach(), *torch.autograd.grad(out, tensors, above)]


def drawn(device, dtype, size, heads=4):
    """Queries, keys, values, and a gradient from above, the same wherever they are needed."""
    generator = torch.Generator().manual_seed(size)
    tokens = sum(LENGTHS)
    shapes = [(1, heads, tokens, size)] * 3 + [(1, tokens, heads, size)]
    return [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("size", [64, 40, 96, 128])
@pytest.mark.parametrize(("causal", "window", "scaling"), [(True, None, None), (False, None, 0.3), (True, 17, 0.3), (False, 17, None)])
def test_c14_what_a_compiled_block_attends_by_is_plain_attention(device, dtype, size, causal, window, scaling):
    inputs = drawn(device, dtype, size)
    if dtype in HALF:
        # Else what is compared below is not what a run on this machine computes.
        assert opaque.flash_works() and opaque._flashes(inputs[0], inputs[2])
    found = of_a_block(inputs, (causal, window, 0.0, scaling))
    # On the CPU and in fp32: neither a kernel nor a rounding of the device is in it.
    *tensors, above = (tensor.float().cpu() for tensor in inputs)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    out = packed.attention(*tensors, LENGTHS, causal, window, 0.0, scaling, None)
    for mine, reference in zip(found, [out.detach(), *torch.autograd.grad(out, tensors, above)], strict=True):
        assert mine.dtype == dtype and mine.shape == reference.shape and apart(mine, reference) < NEAR[dtype]


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_dropout_of_a_compiled_block_drops_its_share_and_backward_what_forward_dropped(device, dtype):
    """With queries of zeros all keys of a document weigh the same: what is left is what was kept, and its share is known."""
    query, key, value, _ = drawn(device, dtype, 64)
    query, settings = torch.zeros_like(query), (False, None, 0.3, None)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(of_a_block((query, key, torch.ones_like(value), torch.ones(1, sum(LENGTHS), 4, 64).to(value)), settings))
    assert torch.equal(outs[0][0], outs[1][0]) and apart(outs[0][3], outs[1][3]) < 0.01
    assert not torch.equal(outs[0][0], outs[2][0]) and apart(outs[0][3], outs[2][3]) > 0.01
    start = sum(LENGTHS[:4])
    kept = outs[0][0][0, start : start + 300, :, 0].float()  # of the document of 300: 1,200 means of 300 keys each
    assert abs(float(kept.mean()) - 1) < 0.01 and 0.8 < float(kept.std()) / (0.3 / 0.7 / 300) ** 0.5 < 1.2
    # For what was dropped in forward, out is linear in values: ⟨out, out⟩ = ⟨value, gradient of value by out⟩. Had backward dropped others,
    # the two would be as 1 to 0.7.
    torch.manual_seed(3)
    above = opaque.attend(query, key, value, opaque.numbered(LENGTHS), *settings)[0].detach()
    torch.manual_seed(3)
    out, *_, of_value = of_a_block((query, key, value, above), settings)
    sums = [float((one.double() * other.double()).sum()) for one, other in ((out, out), (value, of_value))]
    assert sums[1] == pytest.approx(sums[0], rel=0.02)


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
