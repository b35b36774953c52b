"""Distillation: a task's module beside a teacher's, whose outputs, hidden states and attention are targets.

The teacher is a part of the module, frozen, so that a strategy places it as it does the student: cut over the ranks, or in the host's
memory. Both read the same packed batch, so that their tokens lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.choices import ConfigError
from trainer.models import packed
from trainer.models.blocks import blocks
from trainer.models.headed import Headed, soft_targets
from trainer.tasks import Batch
from trainer.teachers import HIDDEN, RELATIONS, SOFT

if TYPE_CHECKING:
    from trainer.teachers import PretrainedTeacher


class Distilling(Headed):
    """A task's module that also learns of `teacher`; in evaluation mode it is the task's own."""

    teacher: Headed
    options: PretrainedTeacher

    def train(self, mode: bool = True) -> Distilling:
        super().train(mode)
        # Its dropout would be noise in the targets.
        self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if not self.training:
            sums: dict[str, Tensor] = super().forward(batch)
            return sums
        options = self.options
        with _watching(self.model, options) as seen:
            heads = self.heads(batch)
        sums = self.sums(heads, batch)
        with torch.no_grad(), _watching(self.teacher.model, options) as shown:
            wanted = self.teacher.heads(batch)
        if options.weight:
            for term, logits in heads.items():
                sums[f"{term}{SOFT}"] = self.divergence(term, logits, wanted[term], options.temperature)
        # A filler's tokens count for nothing.
        counts = float(batch.tokens > 0)
        if options.hidden:
            theirs = [shown.states[place] for place in _evenly(len(seen.states), len(shown.states))]
            sums[HIDDEN] = counts * sum((_distance(one, other) for one, other in zip(seen.states, theirs, strict=True)), torch.zeros(()))
        if options.attention:
            sums[RELATIONS] = counts * _relations(seen.attention, shown.attention, batch.lengths, options.relation_heads)
        return sums


class _Seen:
    """What a model did within a forward: hidden states after each block `[1, tokens, hidden]`, and queries, keys and values of the last
    attention `[1, heads, tokens, head]`."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.attention: tuple[Tensor, ...] = ()


@contextmanager
def _watching(model: nn.Module, options: PretrainedTeacher) -> Iterator[_Seen]:
    """Keep what is asked for of a model's forward."""
    seen = _Seen()

    def after(_: nn.Module, __: Any, output: Any) -> None:
        seen.states.append(output[0] if isinstance(output, tuple) else output)

    def attended(*tensors: Tensor) -> None:
        seen.attention = tensors

    with ExitStack() as stack:
        if options.hidden:
            for block in blocks(model):
                stack.callback(block.register_forward_hook(after).remove)
        if options.attention:
            stack.enter_context(packed.watched(attended))
        yield seen


def _evenly(count: int, among: int) -> list[int]:
    """Which of the teacher's blocks each of the student's is held beside: the last beside the last, those before it evenly."""
    return [(number + 1) * among // count - 1 for number in range(count)]


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cosine of hidden states, summed over tokens."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()


def _relations(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], lengths: tuple[int, ...], heads: int) -> Tensor:
    """KL of how tokens of a document relate to each other by queries, by keys and by values, a mean of the three; summed over tokens."""
    total = student[0].new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(*(_divided(tensor, heads).split(lengths, dim=1) for tensor in (ours, theirs)), strict=True)
        for one, other in pairs:
            scores = [part.float() @ part.float().transpose(1, 2) / part.shape[-1] ** 0.5 for part in (one, other)]
            total = total + soft_targets(scores[0], scores[1], 1.0) / heads
    return total / len(student)


def _divided(tensor: Tensor, heads: int) -> Tensor:
    """`[1, heads, tokens, head]` → `[relation heads, tokens, …]`."""
    return tensor[0].transpose(0, 1).flatten(1).unflatten(1, (heads, -1)).transpose(0, 1)


@lru_cache(maxsize=16)
def _kind(kind: type[Headed]) -> type[Headed]:
    return type(f"Distilling{kind.__name__}", (Distilling, kind), {})


def distil(module: Headed, teacher: Headed, options: PretrainedTeacher) -> None:
    """Have a task's module learn of a teacher's too. Its names stay: what the student is called is as without a teacher.

    Raises ConfigError where they have nothing to compare.
    """
    student, other = module.model.config.get_text_config(), teacher.model.config.get_text_config()
    if options.hidden and (student.hidden_size != other.hidden_size or module.model.config.is_encoder_decoder):
        raise ConfigError(
            f"teacher.hidden: {options.hidden}; hidden states of width {student.hidden_size} cannot be held beside those of "
            f"{options.path}, of width {other.hidden_size}; give the student that width, or teacher.hidden=0"
            if student.hidden_size != other.hidden_size
            else f"teacher.hidden: {options.hidden}; not for encoder–decoder models; set teacher.hidden=0"
        )
    depths = [len(blocks(model)) for model in (module.model, teacher.model)]
    if options.hidden and depths[0] > depths[1]:
        raise ConfigError(
            f"teacher.hidden: {options.hidden}; the student has {depths[0]} blocks and {options.path} {depths[1]}, so not every one has "
            "another to be held beside; give the student as many at most, or teacher.hidden=0"
        )
    if options.attention:
        for whose, model in (("the student", module.model), (options.path, teacher.model)):
            _require_relations(whose, model, options.relation_heads)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    module.__class__ = _kind(type(module))  # type: ignore[arg-type]
    module.options = options  # type: ignore[assignment]
    module.teacher = teacher


def _require_relations(whose: str, model: Any, heads: int) -> None:
    if model.config._attn_implementation != packed.NAME:
        raise ConfigError(
            f"teacher.attention: {whose} is a {model.config.model_type}, whose attention is not seen; set teacher.attention=0"
        )
    width = model.config.get_text_config().hidden_size
    if width % heads:
        raise ConfigError(f"teacher.relation_heads: {heads} do not divide the width {width} of {whose}; choose a divisor of both widths")
