"""The meter against plain arithmetic, on real ranks; model FLOPs against torch's own count; goodput over attempts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distributed import run_distributed
from trainer.distributed import World
from trainer.metrics import Meter, useful_seconds
from trainer.mfu import named_peak, work_of
from trainer.models import Vocabulary
from trainer.models.head import logits_at
from trainer.models.llama import Llama
from trainer.models.modernbert import ModernBERT
from trainer.tasks import Batch

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
WEIGHTS = {"mlm": 1.0, "nsp": 0.5}


def _record(meter: Meter, rank: int, size: int, steps: int, first: int = 1) -> None:
    """Steps whose rank-local sums are known: rank r, step s, micro-batch m has mlm sum 10 s + r + m over (r + 1) targets."""
    for step in range(first, first + steps):
        targets = {"mlm": 2 * sum(r + 1 for r in range(size)), "nsp": size if step % 2 else 0}
        for micro in range(2):
            losses = {"mlm": torch.tensor(10.0 * step + rank + micro), "nsp": torch.tensor(0.25 if step % 2 else 0.0)}
            meter.add(losses, targets)
        meter.close(step, torch.tensor(float(step)), torch.tensor(0.0 if step == 3 else 1.0), tokens=100, samples=4)


def _rank(world: World) -> list[list[dict]]:  # type: ignore[type-arg]
    meter = Meter(WEIGHTS, 5, world)
    _record(meter, world.rank, world.size, 5)
    first = meter.flush()
    _record(meter, world.rank, world.size, 2, first=6)
    return [first, meter.flush(), [meter.speed()]]


@pytest.mark.parametrize("size", [1, 3])
def test_each_line_is_the_objective_of_its_own_step_over_all_ranks(size: int) -> None:
    ranks = run_distributed(_rank, size)
    for first, second, (speed,) in ranks:
        assert [line["step"] for line in first + second] == [1, 2, 3, 4, 5, 6, 7]
        for line in first + second:
            step = line["step"]
            mlm = sum(10.0 * step + r + m for r in range(size) for m in range(2)) / (2 * sum(r + 1 for r in range(size)))
            assert line["mlm_loss"] == pytest.approx(mlm, rel=1e-12)
            assert ("nsp_loss" in line) == bool(step % 2), "a term without a target has no loss"
            assert line["loss"] == pytest.approx(mlm + (0.5 * 0.5 if step % 2 else 0.0), rel=1e-12)
            assert line["perplexity"] == pytest.approx(math.exp(mlm))
            assert (line["grad_norm"], line["applied"]) == (float(step), step != 3)
        assert (speed["tokens"], speed["samples"], speed["interval_steps"], speed["interval_dropped"]) == (700, 28, 2, 0)
    assert all(rank[:2] == ranks[0][:2] for rank in ranks), "every rank reads the same figures"


def test_c18_a_step_that_is_not_finite_has_its_line() -> None:
    meter = Meter({"clm": 1.0}, 3, ALONE)
    for step, loss in ((1, 2.0), (2, math.nan), (3, 1.0)):
        meter.add({"clm": torch.tensor(loss)}, {"clm": 1})
        meter.close(step, torch.tensor(loss), torch.tensor(float(math.isfinite(loss))), 10, 1)
    lines = meter.flush()
    assert [line["applied"] for line in lines] == [True, False, True]
    assert math.isnan(lines[1]["loss"]) and lines[2]["loss"] == 1.0, "what was not finite stays in its own step"
    assert meter.speed()["interval_dropped"] == 1


class _Watched(torch.utils._python_dispatch.TorchDispatchMode):
    """Operators that wait for the device, counted below Python's surface."""

    WAITING = ("_local_scalar_dense", "nonzero", "item", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device() -> None:
    meter = Meter(WEIGHTS, 4, ALONE)
    with _Watched() as watched:
        _record(meter, 0, 1, 4)
    assert watched.seen == []
    with _Watched() as watched:
        bool(torch.tensor(1.0) > 0)
    assert watched.seen, "the mode sees a read"


def test_too_many_steps_without_a_flush_is_our_own_mistake() -> None:
    meter = Meter(WEIGHTS, 2, ALONE)
    with pytest.raises(AssertionError, match="flush"):
        _record(meter, 0, 1, 3)


def test_pauses_are_no_time_of_steps_and_waiting_is_told() -> None:
    meter = Meter({"clm": 1.0}, 4, ALONE)
    with meter.paused():
        time.sleep(0.3)
    with meter.waiting():
        time.sleep(0.1)
    meter.add({"clm": torch.tensor(1.0)}, {"clm": 1})
    meter.close(1, torch.tensor(1.0), torch.tensor(1.0), tokens=1000, samples=2)
    meter.flush()
    speed = meter.speed()
    assert 0.1 <= speed["interval_seconds"] < 0.3
    assert speed["tokens_per_second"] == pytest.approx(1000 / speed["interval_seconds"])
    assert 0.5 < speed["data_wait"] <= 1.0
    assert 0 < speed["goodput"] < 0.75, "the pause is wall time, and not useful"
    assert speed["memory_bytes"] > 1e6
    assert speed["mfu"] is None, "no peak is known for a CPU"


def test_mfu_is_flops_a_second_over_the_peak_of_all_devices() -> None:
    model = _gpt2()
    work = work_of(model, ["clm"])
    meter = Meter({"clm": 1.0}, 1, ALONE, work=work, peak=1e9)
    batch = Batch({}, (8, 8), {"clm": 16}, tokens=16)
    filler = Batch({}, (8,), {"clm": 0}, tokens=0)
    meter.add({"clm": torch.tensor(1.0)}, {"clm": 16}, batch)
    meter.add({"clm": torch.tensor(0.0)}, {"clm": 16}, filler)
    meter.close(1, torch.tensor(1.0), torch.tensor(1.0), 16, 2)
    time.sleep(0.05)
    meter.flush()
    speed = meter.speed()
    assert speed["mfu"] == pytest.approx(work.flops(16, {"clm": 16}, (8, 8)) / speed["interval_seconds"] / 1e9)


def _gpt2():  # type: ignore[no-untyped-def]
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))


def _bert():  # type: ignore[no-untyped-def]
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=16
    )
    return BertForPreTraining(config)


def _llama():  # type: ignore[no-untyped-def]
    return Llama(layers=2, hidden=32, heads=4, kv_heads=2, tie_embeddings=False).build("causal", Vocabulary(128), 16)


def _albert():  # type: ignore[no-untyped-def]
    from transformers import AlbertConfig, AlbertForMaskedLM

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "embedding_size": 16,
    }
    return AlbertForMaskedLM(AlbertConfig(vocab_size=128, max_position_embeddings=16, **sizes))


@pytest.mark.parametrize("model_of", [_gpt2, _llama, _albert])
def test_model_flops_are_what_torch_counts(model_of: Callable[[], Any]) -> None:
    """Also of grouped heads, and of layers that share their parameters."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of()
    ids = torch.randint(0, 128, (3, 16))
    # In the mathematical kernel attention is two plain products, over the full square.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits_at(model, None, input_ids=ids).sum().backward()
    ours = work_of(model, ["clm"]).flops(48, {"clm": 48}, (16, 16, 16))
    # The gradient of the first block's input is wanted too, as embeddings train; nothing is left out.
    assert counter.get_total_flops() == ours


def test_frozen_parameters_cost_no_gradient_of_their_own_and_those_below_none_at_all() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for chosen in ((), ("h.1.",), ("lm_head",), ("wte", "h.1.mlp")):
        model = _gpt2()
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(each in name for each in chosen) or not chosen)
        ids = torch.randint(0, 128, (3, 16))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits_at(model, None, input_ids=ids).sum().backward()
        ours = work_of(model, ["clm"]).flops(48, {"clm": 48}, (16, 16, 16))
        assert counter.get_total_flops() == ours, chosen


def test_the_head_counts_on_the_rows_it_is_computed_for() -> None:
    work = work_of(_bert(), ["mlm", "nsp"])
    blocks = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert work.body == blocks, "embeddings are looked up, norms and biases are no products"
    assert work.heads == {"mlm": 32 * 32 + 32 * 128, "nsp": 32 * 32 + 32 * 2}
    assert (
        work.flops(100, {"mlm": 15, "nsp": 4}, (50, 50))
        == 6 * (blocks * 100 + work.heads["mlm"] * 15 + work.heads["nsp"] * 4) + 12 * 64 * 5000
    )


def test_a_window_counts_the_pairs_within_it() -> None:
    model = ModernBERT(layers=5, hidden=32, heads=4, window=6, global_every=2).build("masked", Vocabulary(128), 64)
    work = work_of(model, ["mlm"])
    assert work is not None and (work.attention, work.windows) == (3 * 32, {4: 2 * 32})
    pairs = sum(abs(i - j) <= 3 for length in (20, 3) for i in range(length) for j in range(length))
    assert work.flops(0, {}, (20, 3)) == 12 * 32 * (3 * (400 + 9) + 2 * pairs)


def test_a_token_counts_the_experts_that_it_takes() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
    }
    model = MixtralForCausalLM(MixtralConfig(vocab_size=128, num_local_experts=8, num_experts_per_tok=2, sliding_window=5, **sizes))
    work = work_of(model, ["clm"])
    assert work is not None and work.body == 2 * (4 * 32 * 32 + 8 * 32 + 2 * 3 * 32 * 48)
    assert work.windows == {5: 2 * 32} and work.attention == 0


def test_what_is_no_attention_is_not_counted() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    assert work_of(MambaForCausalLM(MambaConfig(vocab_size=128, hidden_size=16, num_hidden_layers=1)), ["clm"]) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GB200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A6000", 154.8e12),
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Some GPU", None),
    ],
)
def test_peaks_go_by_the_name_of_the_device(name: str, peak: float | None) -> None:
    assert named_peak(name) == peak


def _line(step: int, steps: int, seconds: float, dropped: int = 0) -> dict[str, float]:
    return {"step": step, "interval_steps": steps, "interval_seconds": seconds, "interval_dropped": dropped}


def test_goodput_counts_a_step_once_that_a_restart_computed_again() -> None:
    lines = [_line(10, 10, 1.0), _line(20, 10, 1.0), _line(30, 10, 1.0)]
    assert useful_seconds(lines) == 3.0
    assert useful_seconds(lines, resumed_at=25) == 2.5, "five steps of the last line are lost"
    again = [*lines, _line(30, 5, 0.6), _line(40, 10, 1.0)]
    assert useful_seconds(again) == pytest.approx(2.5 + 1.6)
    assert useful_seconds([*lines, {"step": 30, "eval_loss": 1.0}]) == 3.0, "an evaluation is no step"
    assert useful_seconds([_line(10, 10, 1.0, dropped=4)]) == pytest.approx(0.6)


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0.1, 5.0)), min_size=1, max_size=12), st.data())
def test_goodput_never_exceeds_what_was_spent_and_a_lost_attempt_adds_nothing(
    intervals: list[tuple[int, float]], data: st.DataObject
) -> None:
    lines, step = [], 0
    for count, seconds in intervals:
        step += count
        lines.append(_line(step, count, seconds))
    total = sum(seconds for _, seconds in intervals)
    resumed = data.draw(st.integers(0, step))
    assert useful_seconds(lines) == pytest.approx(total)
    kept = useful_seconds(lines, resumed)
    assert 0 <= kept <= total + 1e-9
    if resumed < step:
        redone = _line(step, step - resumed, 1.0)
        assert useful_seconds([*lines, redone]) == pytest.approx(kept + 1.0)
