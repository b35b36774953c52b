"""Whether the fast path computes what the plain one does, on the device that is here: losses and gradients of packed rows of several
documents, head on target rows, kernels and compiled blocks as they are by default, against transformers' model on padded rows."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import ours
from benchmarks.peers.rows import IGNORED, Data, build_model, packed
from trainer import compose
from trainer.config import Config
from trainer.tasks import Batch

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {"gpt": ("model=gpt2_tiny",), "llama": ("model=llama_tiny", "model.kv_heads=1"), "bert": ("model=bert_tiny", "task=mlm")}
# Heads of 64, as kernels for several lengths like them.
# Short documents, so that there are several in a row.
SMALL = ("data=text", f"data.path={ROOT}/conf/**/*.yaml", "model.layers=2", "model.hidden=128", "model.heads=2",
         "tokenizer.vocab_size=512", "sequence_length=128", "global_batch=4", "micro_batch=4", "steps=2",
         "strategy=single", "tracking.wandb=off")  # fmt: skip
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}


def padded(batch: Batch, term: str) -> dict[str, Tensor]:
    """The documents of a packed batch, each a row of its own."""
    ids, lengths = batch.inputs["input_ids"][0], list(batch.lengths)
    assert len(ids) == sum(lengths), "packed batches have no padding"
    labels = torch.full_like(ids, IGNORED)
    targets = batch.inputs[f"{term}_targets"]
    labels[batch.inputs[f"{term}_index"] if len(targets) < len(ids) else slice(None)] = targets
    rows = {"input_ids": (ids, 0), "attention_mask": (torch.ones_like(ids), 0), "labels": (labels, IGNORED)}
    found = {
        name: torch.nn.utils.rnn.pad_sequence(list(values.split(lengths)), batch_first=True, padding_value=filler)
        for name, (values, filler) in rows.items()
    }
    return found | ({"shift_labels": found["labels"]} if term == "clm" else {})


def compared(config: Config, data: Data, folder: Path) -> dict[str, float]:
    """One backward of a batch: the difference of the losses, and of all gradients together, over the size of what transformers gives."""
    (term,) = config.task.terms
    with contextlib.redirect_stdout(io.StringIO()):
        training = ours.build(config, data, folder, lambda step: None)
    placement: Any = training.placement
    batch = training.loader.step(0).micro_batches[0].to(training.world.device)
    placement.optimizer.zero_grad()
    mine = placement.module(batch)[term] / batch.targets[term]
    mine.backward()
    training.stop.close()
    model = build_model(config, data).to(training.world.device).train()
    theirs = model(**padded(batch, term)).loss
    theirs.backward()
    # What both have a gradient of, by the names without our wrapper.
    gradients = {name.removeprefix("model."): parameter.grad for name, parameter in placement.task_module.named_parameters()}
    reference = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(reference) == {name for name, gradient in gradients.items() if gradient is not None}
    apart = torch.stack([(gradients[name].float() - wanted).norm() for name, wanted in reference.items()]).norm()
    size = torch.stack([wanted.norm() for wanted in reference.values()]).norm()
    loss = abs(mine.item() - theirs.item()) / theirs.item()
    return {"documents": len(batch.lengths), "loss": loss, "gradients": float(apart / size)}


def check() -> dict[str, Any]:
    """As a part of gpu.py: every family, in fp32, and in bf16 where there is a GPU."""
    found: dict[str, dict[str, float]] = {}
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for family, words in FAMILIES.items():
            for precision in ("fp32", "bf16") if torch.cuda.is_available() else ("fp32",):
                config = compose(*words, *SMALL, f"precision={precision}")
                one = compared(config, packed(config), Path(folder) / f"{family}-{precision}")
                found[f"{family}, {precision}"] = one
                good &= max(one["loss"], one["gradients"]) <= TOLERANCES[precision] and one["documents"] > 4
    said = "; ".join(f"{name}: loss {one['loss']:.1e}, gradients {one['gradients']:.1e} off" for name, one in found.items())
    return {"good": good, "said": said, "figures": found}
