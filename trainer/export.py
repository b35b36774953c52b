"""`model/`: the trained model in Hugging Face's format, under any strategy, with its tokenizer."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.atomic import flush
from trainer.choices import ConfigError
from trainer.strategies import tell_engines

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainer.data.corpus import Corpus
    from trainer.distributed import World
    from trainer.strategies import Placement


def export(placement: Placement, corpus: Corpus, path: Path, world: World) -> None:
    """Write the whole model and its tokenizer to `path`, replacing what is there at once. Entered by every rank."""
    from transformers.utils.logging import disable_progress_bar

    with placement.gathered() as module:
        if not world.leads:
            return
        model: Any = module.model
        whole = unpadded(model, corpus.vocabulary.size, corpus.vocabulary.padded)
        for left in path.parent.glob(f".{path.name}.[0-9]*"):
            shutil.rmtree(left)  # of an export that was killed
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        disable_progress_bar()
        whole.save_pretrained(aside)
        shutil.copytree(corpus.tokenizer_path, aside, dirs_exist_ok=True)
        replace_folder(aside, path)


def replace_folder(aside: Path, path: Path) -> None:
    """Put a folder in the place of another, on the disk before it is visible; what a kill half-way left of the older one is removed."""
    for written in (*aside.rglob("*"), aside):
        flush(written)
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
    aside.replace(path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def unpadded(model: PreTrainedModel, size: int, padded: int) -> PreTrainedModel:
    """A copy on the CPU whose vocabulary has no padding rows: their logits were never trained, and nobody should sample them."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = None  # the best that the model has
    trims = config.vocab_size == padded and size < padded
    if trims:
        config.vocab_size = size
    with torch.device("meta"):
        whole = type(model)(config)
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    state = {}
    for name, tensor in model.state_dict().items():
        wanted = shapes[name]
        # Only tensors with one row, or one column, a vocabulary entry differ.
        state[name] = tensor[tuple(map(slice, wanted))].detach().to("cpu", torch.float32, copy=True)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    # What is not saved is made anew where a saved model is loaded; here it would stay without values.
    for name, buffer in model.named_buffers():
        if name not in state:
            owner, _, leaf = name.rpartition(".")
            whole.get_submodule(owner).register_buffer(leaf, buffer.detach().to("cpu", copy=True), persistent=False)
    return whole.eval()


def load_exported(path: Path) -> PreTrainedModel:
    """The model in a run's `model/`, with the head it was trained with. Raises ConfigError where there is none yet."""
    import transformers

    if not (path / "config.json").exists():
        raise ConfigError(f"{path}: no model there yet; it is written when the run reaches its budget")
    tell_engines("cuda" if torch.cuda.is_available() else "cpu")
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(path)
    return getattr(transformers, config.architectures[0]).from_pretrained(path)
