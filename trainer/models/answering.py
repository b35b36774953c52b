"""A module that strategies wrap, for answers that stand in a text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.models.examples import ExampleModule
from trainer.models.headed import soft_targets
from trainer.models.padded import Unpacked
from trainer.tasks import Batch

# No logit is less likely than this.
_LEAST = -1e4


class AnsweringModule(ExampleModule):
    """Two tokens of every example, the first and the last of its answer: the mean of both cross-entropies."""

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        """`[examples, 2, longest]`: of each token how likely it is the first of the answer, and how likely the last."""
        inputs, outputs = batch.inputs, self.outputs(batch)
        # What fills up a shorter example is no token that an answer could begin with.
        fills = ~Unpacked.of(batch.lengths, inputs["input_ids"].device).real[:, None]
        both = torch.stack([outputs.start_logits, outputs.end_logits], 1).float().masked_fill(fills, float("-inf"))
        return {"answer": both.index_select(0, inputs["answer_index"])}

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        inputs, (starts, ends) = batch.inputs, heads["answer"].unbind(1)
        places = inputs["answer_places"]
        sums = {
            "answer": (F.cross_entropy(starts, places[:, 2], reduction="sum") + F.cross_entropy(ends, places[:, 3], reduction="sum")) / 2
        }
        if self.training:
            return sums
        told = {name: inputs[f"answer_{name}"] for name in ("places", "begins", "ends", "sizes")}
        return sums | told | {"start_logits": starts, "end_logits": ends}

    def divergence(self, term: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The mean of both; what fills up is infinitely unlikely for either."""
        return soft_targets(student.clamp(min=_LEAST), teacher.clamp(min=_LEAST), temperature) / 2
