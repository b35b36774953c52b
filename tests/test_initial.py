"""init.run: another run's weights as a start, of any strategy and length; what does not fit is told before launch."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.distributed import run_distributed
from tests.loops import BERT, losses, ready, single, train, training, write_texts
from trainer.choices import ConfigError


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def first(tmp_path_factory, texts):
    """The first phase, on short rows, cut over two devices: its run, and its weights at the end."""
    path = ready(
        tmp_path_factory.mktemp("first"), texts, *BERT, "strategy=fsdp", "sequence_length=24", "steps=12", "optim.lr=1e-2", world=2
    )
    return path, run_distributed(train, 2, str(path))[0]


def at_start(world, path):
    """Weights before step 1, and what else a start has."""
    here = training(world, path)
    with here.placement.gathered() as module:
        weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return {"weights": weights, "step": here.step, "optimizer_step": here.placement.scalars()["optimizer_step"]}


@pytest.mark.parametrize(("strategy", "world"), [("single", 1), ("zero2", 2)])
def test_a_second_phase_starts_from_weights_of_another_strategy_with_longer_rows(tmp_path, texts, first, strategy, world):
    """Parameters alone: step, position and moments begin anew."""
    source, weights = first
    words = (*BERT, "sequence_length=64", f"init.run={source}@12", f"strategy={strategy}")
    path = ready(tmp_path, texts, *words, world=world)
    found = at_start(single(), path) if world == 1 else run_distributed(at_start, world, str(path))[0]
    assert found["step"] == 0 and found["optimizer_step"] == 0
    assert found["weights"].keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found["weights"].items())


def test_a_second_phase_goes_on_learning(tmp_path, texts, first):
    """Its first loss is far below that of random weights, and a resume of it does not need the first phase any more."""
    source = tmp_path / "copy@2"  # a name that could be a step
    shutil.copytree(first[0], source)
    runs = [ready(tmp_path, texts, *BERT, "sequence_length=64", "save_every=2", *more, name=name) for name, more in (
        ("scratch", ()), ("second", (f"init.run={source}",)))]  # fmt: skip
    for run in runs:
        train(single(), run, last=2)
    scratch, second = map(losses, runs)
    assert second[0] < scratch[0] - 1
    shutil.rmtree(source)
    again = ready(tmp_path, texts, *BERT, "sequence_length=64", "save_every=2", f"init.run={source}", name="second")
    train(single(), again)
    assert len(losses(again)) == 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.hidden=64"], r"weight has shape \(128, 32\) there, and \(128, 64\) here; model.hidden is 32 there and 64 here"),
        (
            ["model.positions=24"],
            r"\(512, 32\) there, and \(24, 32\) here; model.positions is 512 there and 24 here; .* both must",
        ),
        (
            ["model=roberta_tiny", "task=mlm"],
            "no model.roberta.embeddings.word_embeddings.weight there.* task is mlm_nsp there",
        ),
        (["tokenizer.kind=bpe"], "another tokenizer"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_launch(tmp_path, texts, first, words, told):
    given = {word.split("=")[0] for word in words}
    bert = [word for word in BERT if word.split("=")[0] not in given]
    with pytest.raises(ConfigError, match=f"^init.run: .*{told}"):
        ready(tmp_path, texts, *bert, "sequence_length=24", f"init.run={first[0]}", *words)


def test_a_step_that_was_not_kept_is_named(tmp_path, texts, first):
    with pytest.raises(ConfigError, match=r"steps in .*: 12"):
        ready(tmp_path, texts, *BERT, f"init.run={first[0]}@7")
