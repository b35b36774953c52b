"""`model/`: the trained model in Hugging Face's format, under any strategy, with its tokenizer."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.choices import ConfigError

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
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        disable_progress_bar()
        whole.save_pretrained(aside)
        shutil.copytree(corpus.tokenizer_path, aside, dirs_exist_ok=True)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            path.replace(old)
            aside.replace(path)
            shutil.rmtree(old)
        else:
            aside.replace(path)


def unpadded(model: PreTrainedModel, size: int, padded: int) -> PreTrainedModel:
    """A copy on the CPU whose vocabulary has no padding rows: their logits were never trained, and nobody should sample them."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "sdpa"
    trims = config.vocab_size == padded and size < padded
    if trims:
        config.vocab_size = size
    with torch.device("meta"):
        whole = type(model)(config)
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    state = {}
    for name, tensor in model.state_dict().items():
        wanted = shapes[name]
        # Only tensors with one row a vocabulary entry differ.
        state[name] = (tensor if tensor.shape == wanted else tensor[: wanted[0]]).detach().to("cpu", torch.float32, copy=True)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    return whole.eval()


def load_exported(path: Path) -> PreTrainedModel:
    """The model in a run's `model/`, with the head it was trained with. Raises ConfigError where there is none yet."""
    import transformers

    if not (path / "config.json").exists():
        raise ConfigError(f"{path}: no model there yet; it is written when the run reaches its budget")
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(path)
    return getattr(transformers, config.architectures[0]).from_pretrained(path)
