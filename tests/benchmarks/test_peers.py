"""The comparison with transformers' Trainer, small: the same losses at every step, from the same rows and weights."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers import parity
from benchmarks.peers.rows import IGNORED, pad
from tests.benchmarks.small import SMALL
from trainer.tasks import Batch


@pytest.mark.parametrize("family", list(parity.FAMILIES))
def test_losses_equal_those_of_trainer_and_of_a_loop_by_hand(family):
    paces = parity.contest(family, 10, 1, lambda text: None, *SMALL)
    losses = paces[parity.OURS][0].losses
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.05, "nothing was learned, so equal losses would say little"
    # Noise of another order of summing is a thousandth of the tolerance; a wrong denominator or decay group is far above it.
    assert parity.furthest(paces, parity.TRAINER) < 1e-4
    assert parity.furthest(paces, parity.PLAIN) < 1e-4
    text = parity.markdown({family: paces}, 10, 1)
    assert all(name in text for name in (parity.OURS, parity.TRAINER, parity.PLAIN))


def test_padded_rows_hold_every_target_once():
    """Lengths differ, so padding shows; a causal row ends with its last target, and its first token is none."""
    one = Batch({"input_ids": torch.tensor([[5, 6, 7]]), "clm_targets": torch.tensor([6, 7, 8])}, (3,), {"clm": 3}, 3)
    other = Batch({"input_ids": torch.tensor([[5]]), "clm_targets": torch.tensor([9])}, (1,), {"clm": 1}, 1)
    padded = pad([one, other])
    assert padded["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert padded["labels"].tolist() == [[IGNORED, 6, 7, 8], [IGNORED, 9, IGNORED, IGNORED]]
