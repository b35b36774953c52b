"""What tasks with a vocabulary head share: label smoothing and z-loss, as terms of the objective beside the cross-entropy.

    Σ [ (1 − ε) (log Z − x_y) + ε (log Z − mean x) + ζ log² Z ] ÷ targets        x: logits, y: the target, log Z = logsumexp x

ε: Szegedy et al. 2015 (https://arxiv.org/abs/1512.00567). ζ: PaLM, Chowdhery et al. 2022 (https://arxiv.org/abs/2204.02311).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainer.choices import identity, require_at_least, require_share
from trainer.tasks import Task


@dataclass
class Regularizing(Task):
    """A task whose term `vocabulary_term` is a cross-entropy over the vocabulary.

    Held-out figures are of the plain cross-entropy, whatever these options are.
    """

    label_smoothing: float = identity(0.0, help="share of a target's weight that is spread over the whole vocabulary")
    z_loss: float = identity(0.0, help="weight of the squared log of the softmax's normalizer, e.g. 1e-4; keeps logits small")

    vocabulary_term: ClassVar[str]

    def check(self) -> None:
        require_share(self, "label_smoothing")
        require_at_least(self, 0, "z_loss")

    @property
    def regularized(self) -> bool:
        """Whether the head has to return more sums than the cross-entropy's."""
        return bool(self.label_smoothing or self.z_loss)

    @property
    def weights(self) -> dict[str, float]:
        term, found = self.vocabulary_term, dict(self.terms)
        whole = found[term]
        found[term] = whole * (1.0 - self.label_smoothing)
        more = {f"{term}_smoothing": self.label_smoothing, f"{term}_z": self.z_loss}
        return found | {name: whole * weight for name, weight in more.items() if weight}

    def counted(self, targets: dict[str, int]) -> dict[str, int]:
        return {**dict.fromkeys(self.weights, targets[self.vocabulary_term]), **targets}
