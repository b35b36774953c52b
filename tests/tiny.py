"""Tiny GPT and BERT modules, batches of ragged rows, and a loop of a few lines over a Placement."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from trainer.adapters import NoAdapter
from trainer.choices import find, load_choices
from trainer.settings import BF16, FP8, FP16, FP32
from trainer.tasks import Batch

VOCABULARY = 96
ROWS = 11  # rows of a global batch: not divisible by 2 or 3
# Options where the defaults would not show what a strategy does: two replicas of two ranks at world 4; a model this small would stay
# whole beside its parts.
OPTIONS: dict[str, dict[str, Any]] = {
    "hsdp": {"shard_size": 2},
    "zero3": {"options": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
}
WEIGHTS = {"gpt": {"clm": 1.0}, "bert": {"mlm": 1.0, "nsp": 1.0}}


def module(kind: str, dropout: float = 0.0, seed: int = 0) -> torch.nn.Module:
    """A task's module around a two-layer GPT-2 or BERT of width 48, with its first values."""
    from trainer.models.deferred import First, materialise

    built = skeleton(kind, dropout)
    return materialise(built, First(built.model, seed), torch.device("cpu"))  # type: ignore[arg-type]


def skeleton(kind: str, dropout: float = 0.0) -> torch.nn.Module:
    """The same without values, as a task hands it to a strategy."""
    from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel

    from trainer.models.deferred import deferred
    from trainer.models.heads import CausalModule, PretrainingModule

    if kind == "gpt":
        config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=48, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
                            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)  # fmt: skip
        return CausalModule(deferred(lambda: GPT2LMHeadModel(config)), VOCABULARY)
    bert = BertConfig(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
                        max_position_embeddings=32, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)  # fmt: skip
    return PretrainingModule(deferred(lambda: BertForPreTraining(bert)), VOCABULARY)


def rows(step: int) -> list[np.ndarray]:
    """The rows of a step's global batch: of different lengths, following a rule that can be learned."""
    draw = np.random.default_rng(1000 + step)
    found = []
    for length in draw.integers(4, 24, ROWS):
        tokens = [int(draw.integers(VOCABULARY))]
        for _ in range(length):
            tokens.append((tokens[-1] * 5 + 1) % VOCABULARY if draw.random() < 0.9 else int(draw.integers(VOCABULARY)))
        found.append(np.array(tokens))
    return found


def batch(kind: str, chosen: list[np.ndarray]) -> Batch:
    """A packed micro-batch of rows."""
    lengths = tuple(len(row) - 1 for row in chosen)
    positions = np.concatenate([np.arange(length) for length in lengths])
    ids = np.concatenate([row[:-1] for row in chosen])
    inputs = {"input_ids": ids[None], "position_ids": positions[None]}
    if kind == "gpt":
        inputs["clm_targets"] = np.concatenate([row[1:] for row in chosen])
        targets = {"clm": len(ids)}
    else:
        # More masks in later tokens of a vocabulary, so that ranks differ in targets per token too.
        index = np.flatnonzero((ids * 7 + positions) % 5 < 2)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int)
        inputs |= {"token_type_ids": (positions > 5).astype(int)[None], "mlm_index": index, "mlm_targets": ids[index],
                   "nsp_index": starts, "nsp_targets": np.array([len(row) % 2 for row in chosen])}  # fmt: skip
        targets = {"mlm": len(index), "nsp": len(chosen)}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)).long() for name, value in inputs.items()}
    return Batch(tensors, lengths, targets, len(ids))


def config(precision: str = "fp32") -> Any:
    """The part of a Config that placing reads."""
    return SimpleNamespace(adapter=NoAdapter(), precision={"fp32": FP32, "bf16": BF16, "fp16": FP16, "fp8": FP8}[precision]())


def place(
    strategy: str,
    kind: str,
    world: Any,
    optim: Any = None,
    precision: str = "fp32",
    seed: int = 0,
    weights: Any = None,
    dropout: float = 0.0,
    chunk_mib: float | None = 0.005,
    **options: Any,
) -> Any:
    """A Placement of a tiny module; optim: a choice, AdamW by default; weights: of a seed by default; chunk_mib: of the
    head, a few of these rows at once; options: the strategy's."""
    from trainer.config import Head
    from trainer.models.deferred import First
    from trainer.models.heads import chunk_head
    from trainer.optim import AdamW

    load_choices()
    optim, built = optim or AdamW(lr=2e-3), skeleton(kind, dropout)
    chunk_head(built, Head(chunk_mib))
    config(precision).precision.prepare(built)
    weights = weights or First(built.model, seed)  # type: ignore[arg-type]
    chosen: Any = find("strategy", strategy)(**(OPTIONS.get(strategy, {}) | options))
    return chosen.place(built, weights, optim.build, config(precision), world)


def dealt(placement: Any, kind: str, step: int, micro_batches: int) -> tuple[list[Batch], dict[str, int]]:
    """This rank's micro-batches of a step, and the targets of the whole global batch."""
    table = rows(step)
    counts = batch(kind, table).targets
    mine = table[placement.data_rank :: placement.data_size]
    return [batch(kind, mine[index::micro_batches]) for index in range(micro_batches)], counts


def objective(sums: dict[str, torch.Tensor], kind: str, counts: dict[str, int]) -> torch.Tensor:
    """This rank's share of the objective over the global batch."""
    return sum((weight * sums[term] / counts[term] for term, weight in WEIGHTS[kind].items()), torch.zeros(()))


def backward(placement: Any, kind: str, step: int, micro_batches: int, poison: bool = False, scale: float = 1.0) -> torch.Tensor:
    """Forward and backward of a step; this rank's share of the loss. poison: a NaN on the last rank alone."""
    batches, counts = dealt(placement, kind, step, micro_batches)
    share = torch.zeros(())
    for index, piece in enumerate(batches):
        loss = objective(placement.module(piece), kind, counts)
        share += loss.detach()
        if poison and placement.data_rank == placement.data_size - 1 and index == 0:
            loss = loss * float("nan")
        placement.accumulate(loss * scale, last=index == len(batches) - 1)
    return share


def train(
    placement: Any, kind: str, steps: range, micro_batches: int = 1, max_norm: float | None = 1.0, poison: int | None = None
) -> dict[str, Any]:
    """Losses over the global batch, norms and applied of each step. poison: the step that goes NaN."""
    seen: dict[str, Any] = {"losses": [], "norms": [], "applied": []}
    for step in steps:
        loss = backward(placement, kind, step, micro_batches, step == poison)
        if placement.data_size > 1:
            dist.all_reduce(loss)
        norm, applied = placement.finish(min(1.0, (step + 1) / 5), max_norm)
        for key, value in (("losses", loss), ("norms", norm), ("applied", applied)):
            seen[key].append(value.item())
    return seen


def weights(placement: Any) -> dict[str, torch.Tensor]:
    """Whole parameters by name, on rank 0 (on others, whatever is there)."""
    with placement.gathered() as whole:
        return {name: parameter.detach().clone() for name, parameter in whole.named_parameters()} if placement.data_rank == 0 else {}


def distance(mine: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of two sets of weights."""
    assert mine.keys() == reference.keys()
    apart = sum(float((mine[name] - reference[name]).double().square().sum()) for name in reference)
    return (apart / sum(float(tensor.double().square().sum()) for tensor in reference.values())) ** 0.5
