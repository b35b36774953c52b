"""A module that strategies wrap, for answers that stand in a text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trainer.models.examples import ExampleModule
from trainer.models.padded import Unpacked
from trainer.tasks import Batch


class AnsweringModule(ExampleModule):
    """Two tokens of every example, the first and the last of its answer: the mean of both cross-entropies."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        inputs, outputs = batch.inputs, self.outputs(batch)
        real, places = Unpacked.of(batch.lengths, inputs["input_ids"].device).real, inputs["answer_places"]
        # What fills up a shorter example is no token that an answer could begin with.
        starts, ends = (
            logits.float().masked_fill(~real, float("-inf")).index_select(0, inputs["answer_index"])
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        sums = {
            "answer": (F.cross_entropy(starts, places[:, 2], reduction="sum") + F.cross_entropy(ends, places[:, 3], reduction="sum")) / 2
        }
        if self.training:
            return sums
        told = {name: inputs[f"answer_{name}"] for name in ("places", "begins", "ends", "sizes")}
        return sums | told | {"start_logits": starts, "end_logits": ends}
