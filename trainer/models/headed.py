"""What a task's module is: a model, outputs of its heads where there are targets, and the sums of losses of these."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.tasks import Batch


class Headed(nn.Module):
    """forward(batch) → {term: sum of losses}, made of the outputs of heads, which another model of the same task can be held beside."""

    model: PreTrainedModel

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        """term → logits `[targets, classes]` (or values) at the targets of that term."""
        raise NotImplementedError

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """term → sum of losses; in evaluation mode further results."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.sums(self.heads(batch), batch)

    def divergence(self, term: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far logits `[targets, classes]` are from a teacher's, summed over targets: T² KL(teacher ‖ student) at a temperature T.

        Hinton et al. 2015, https://arxiv.org/abs/1503.02531: T² keeps the size of the gradient whatever T is.
        """
        # Beyond the vocabulary there is padding, of the one perhaps and of the other not.
        classes = min(student.shape[-1], teacher.shape[-1])
        return soft_targets(student[:, :classes], teacher[:, :classes], temperature)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) over the last dimension, summed over all others."""
    said, wanted = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(said, wanted, reduction="sum", log_target=True) * temperature**2
