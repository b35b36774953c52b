"""Heads on whole examples: over a packed row a model gives what it gives each example alone, whatever its head does."""

from __future__ import annotations

import pytest
import torch

from tests.models.test_pretrained import config_of
from trainer.models.examples import ExampleModule
from trainer.models.objectives import ON_EXAMPLES, with_head
from trainer.tasks import Batch

LENGTHS = (7, 3, 12)
LABELS = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
PACKED = ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama", "qwen2", "mistral", "opt"]
OUTPUTS = {"question_answering": ["start_logits", "end_logits"], "embedding": ["last_hidden_state"]}
PADDED = ["albert", "bloom", "deberta-v2"]


def batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 128, (1, sum(LENGTHS)), generator=draw)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return Batch({"input_ids": ids, "position_ids": positions}, LENGTHS, {})


# transformers has all pairs but one.
PAIRS = [(family, objective) for family in PACKED + PADDED for objective in ON_EXAMPLES if (family, objective) != ("opt", ON_EXAMPLES[1])]


@pytest.mark.parametrize(("family", "objective"), PAIRS)
def test_each_example_has_the_outputs_that_it_has_alone(family, objective):
    torch.manual_seed(0)
    config = config_of(family)
    labels = {} if objective in OUTPUTS else LABELS
    model = with_head(objective, config, labels, attn_implementation="eager").eval()
    whole = batch()
    documents = whole.inputs["input_ids"].split(LENGTHS, dim=1)
    plain = [model(input_ids=document) for document in documents]
    module = ExampleModule(model)
    assert (not module.notice) == (family in PACKED)
    found = module.outputs(whole)
    for name in OUTPUTS.get(objective, ["logits"]):
        together = getattr(found, name)
        for number, (length, alone) in enumerate(zip(LENGTHS, plain, strict=True)):
            mine = together[number] if objective == "sequence_classification" else together[number, :length]
            assert torch.allclose(mine, getattr(alone, name)[0], rtol=1e-4, atol=1e-5), (name, number)
