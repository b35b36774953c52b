"""Label smoothing and z-loss: torch's own smoothing, PaLM's formula; logged as terms, and no part of held-out figures."""

import pytest
import torch
import torch.nn.functional as F

from tests import tiny
from tests.loops import lines, ready, single, training, write_texts
from trainer.choices import ConfigError
from trainer.tasks.clm import CausalLM
from trainer.tasks.mlm_nsp import MaskedLMWithNextSentence
from trainer.trainer import objective

TASKS = {"gpt": CausalLM, "bert": MaskedLMWithNextSentence}


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.2, "z_loss": 1e-3}], ids=str)
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_the_objective_is_torchs_smoothing_and_palms_z_loss(kind, options):
    task, module, batch = TASKS[kind](**options), tiny.module(kind), tiny.batch(kind, tiny.rows(0))
    seen = {}
    head = module.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, __, logits: seen.update(logits=logits))
    plain = module(batch)
    hook.remove()
    term = task.vocabulary_term
    logits, targets = seen["logits"].flatten(0, -2)[:, : tiny.VOCABULARY], batch.inputs[f"{term}_targets"]
    smoothed = F.cross_entropy(logits, targets, label_smoothing=options.get("label_smoothing", 0.0))
    wanted = smoothed + options.get("z_loss", 0.0) * logits.logsumexp(-1).square().mean()
    if kind == "bert":
        wanted = wanted + plain["nsp"] / batch.targets["nsp"]
    wanted_gradients = gradients(module, wanted)

    assert task.regularized and not TASKS[kind]().regularized
    module.regularized = True
    loss = objective(module(batch), task.weights, task.counted(batch.targets))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    found = gradients(module, loss)
    assert found.keys() == wanted_gradients.keys()
    assert tiny.distance(found, wanted_gradients) < 1e-5

    module.eval()
    with torch.no_grad():
        held_out = module(batch)
    assert held_out[term].item() == pytest.approx(plain[term].item(), rel=1e-6) and not any(name.endswith("_z") for name in held_out)


@pytest.mark.parametrize("field", [{"label_smoothing": 1.0}, {"z_loss": -1.0}])
def test_weights_that_cannot_be_are_refused(field):
    for task in TASKS.values():
        with pytest.raises(ConfigError, match=f"task.{next(iter(field))}: "):
            task(**field)


def test_terms_are_logged_and_held_out_figures_are_plain(tmp_path):
    (tmp_path / "texts").mkdir()
    texts = write_texts(tmp_path / "texts")
    words = ("task.label_smoothing=0.1", "task.z_loss=0.01", "steps=3", "schedule=constant")
    figures = {}
    for micro in (8, 3):
        here = training(single(), ready(tmp_path, texts, *words, f"micro_batch={micro}", name=f"micro-{micro}"))
        here.loop()
        here._evaluate(here.held_outs[0])
        figures[micro] = lines(here.run.path)
        for line in figures[micro]:
            parts = 0.9 * line["clm_loss"] + 0.1 * line["clm_smoothing_loss"] + 0.01 * line["clm_z_loss"]
            assert line["loss"] == pytest.approx(parts, rel=1e-6) and line["clm_z_loss"] > 1.0
        assert here.evaluated["perplexity"] == pytest.approx(torch.tensor(here.evaluated["eval_loss"]).exp().item(), rel=1e-4)
    assert [line["loss"] for line in figures[8]] == pytest.approx([line["loss"] for line in figures[3]], rel=1e-5)
