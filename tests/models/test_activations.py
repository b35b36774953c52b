"""GELU in one operation is the one that transformers writes out."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from trainer.compiling import Compile
from trainer.models.activations import fuse_activations


def _gpt2(activation: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, activation_function=activation,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def _step(model: torch.nn.Module) -> tuple[int, float, list[torch.Tensor]]:
    """Tensors that its forward keeps, its loss and its gradients."""
    ids = torch.arange(16).view(2, 8)
    kept: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return len(kept), loss.item(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_same_loss_and_gradients_from_less_memory() -> None:
    for activation in ("gelu_new", "gelu_fast"):
        plain, fused = _gpt2(activation), _gpt2(activation)
        fuse_activations(fused, Compile())
        (kept, loss, gradients), (fewer, same, others) = _step(plain), _step(fused)
        assert fewer < kept
        torch.testing.assert_close(same, loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(others, gradients, rtol=1e-5, atol=1e-7)


def test_switch_and_other_activations_leave_the_model() -> None:
    for activation, options in (("gelu_new", Compile(activations=False)), ("relu", Compile())):
        model = _gpt2(activation)
        before = [type(part) for part in model.modules()]
        fuse_activations(model, options)
        assert [type(part) for part in model.modules()] == before
