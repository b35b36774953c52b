"""A trained model as a folder that transformers loads: from any whole checkpoint of a run, in one process, without an accelerator.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  README.md  (learned.json)  (model.onnx)

weights.py  tensor by tensor · card.py  README.md · command.py  the run as one command · hub.py  to a hub · graph.py  as ONNX
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer import averaging
from trainer.adapters.folder import BASE, is_adapter, load_adapted
from trainer.atomic import flush, write_json
from trainer.choices import ConfigError, groups
from trainer.data.corpus import open_corpus
from trainer.distributed import alone
from trainer.export.weights import FILE_BYTES, Held, Weights, write_weights
from trainer.initial import bare, is_partial, start_of
from trainer.models import skeleton_of
from trainer.models.objectives import without_pooler
from trainer.run import RunDir, load_frozen
from trainer.strategies import tell_engines

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainer.adapters import Adapter
    from trainer.checkpoint.opening import Opened
    from trainer.config import Config
    from trainer.data.corpus import Corpus
    from trainer.export.graph import Graph
    from trainer.initial import Start

CARD = "README.md"
# Of a model of examples with labels, what its task has learned of those to train on.
LEARNED = "learned.json"
TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True)
class Form:
    """How a model is written. averages: the moving averages of its weights. repository: where at a hub it will be.

    merge: an adapter in the weights of the model that it belongs to, instead of alone. onnx: as a graph too.
    """

    dtype: str = "float32"
    averages: bool = False
    merge: bool = False
    onnx: bool = False
    repository: str | None = None
    license: str | None = None
    file_bytes: int = FILE_BYTES


@dataclass(frozen=True)
class Exported:
    """What was written. parameters: how many; graphs: those in ONNX."""

    parameters: int
    graphs: list[Graph]


def export(run: RunDir, opened: Opened, path: Path, form: Form) -> Exported:
    """Write a checkpoint's model, its tokenizer and its card to `path`, replacing what is there at once.

    Raises ConfigError where the run's data are gone, or where the form cannot be had.
    """
    from trainer.export.card import Subject, write_card

    config = load_frozen(run.config_path)
    resolved = run.placement
    corpus = open_corpus(resolved["corpus"], resolved["rows"], config)
    if form.averages and not any(kind == averaging.KIND for _, kind in opened.read.shapes):
        raise ConfigError(f"averages: true, but {opened.path} holds none; train with optim.ema.decay=0.999, or export without")
    if form.merge and not config.adapter.merges:
        able = [name for name, other in sorted(groups()["adapter"].items()) if other.merges]  # type: ignore[attr-defined]
        raise ConfigError(f"merge: true, but this run has adapter={config.adapter.name}; what can be merged: {', '.join(able)}")
    whole = empty_model(config, corpus)
    whole.to(dtype := getattr(torch, form.dtype))
    for left in path.parent.glob(f".{path.name}.[0-9]*"):
        shutil.rmtree(left)  # of an export that was killed
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        writing = _Writing(config, opened, corpus, whole, dtype, form, path)
        parameters = writing.adapter(aside) if config.adapter.adapts and not form.merge else writing.model(aside)
        shutil.copytree(corpus.tokenizer_path, aside, dirs_exist_ok=True)
        config.task.finish_folder(aside)
        name_inputs(aside / TOKENIZER, whole)
        if corpus.examples:
            write_json(aside / LEARNED, corpus.learned)
        graphs = []
        if form.onnx:
            from trainer.export.graph import write_graphs

            graphs = write_graphs(aside, config, corpus)
        write_card(aside / CARD, Subject(run, config, corpus, opened, whole, form, path, graphs))
        replace_folder(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(parameters, graphs)


@dataclass(frozen=True)
class _Writing:
    """What is written of a checkpoint. whole: the model without values, padding rows or adapter. path: where it will lie."""

    config: Config
    opened: Opened
    corpus: Corpus
    whole: PreTrainedModel
    dtype: torch.dtype
    form: Form
    path: Path

    @functools.cached_property
    def _built(self) -> PreTrainedModel:
        return bare(self.config, self.corpus).model  # type: ignore[return-value]

    def buffer(self, name: str) -> torch.Tensor:
        """Buffers are never trained, and in no checkpoint: they are what the model began with."""
        return self._built.get_buffer(name)

    def model(self, folder: Path) -> int:
        """A whole model; what was frozen comes from where it came from before. Returns its parameters."""
        from trainer.export.adapter import Merged

        held: Held = self.opened.read
        if is_partial(self.config):
            begun = self.begun()
            held = Merged(begun.module.model, begun.weights)  # type: ignore[arg-type]
        return _save(self.whole, Weights(self.whole, held, self.dtype, self.form.averages, self.buffer), folder, self.form.file_bytes)

    def adapter(self, folder: Path) -> int:
        """An adapter, and the model that it belongs to where that lies in no folder that transformers reads. Returns its parameters."""
        from trainer.export.adapter import Plain, base_path, save_adapter

        held, config = self.opened.read, self.config
        trained = {name for name, kind in held.shapes if kind == "parameter"}
        adapted = copy.deepcopy(self.whole)
        config.adapter.adapt(adapted)
        weights = Weights(adapted, held, self.dtype, self.form.averages)
        elsewhere = base_path(config)
        parameters = save_adapter(folder, adapted, weights, trained, config, elsewhere or str((self.path / BASE).resolve()))
        if elsewhere is None:
            begun = self.begun()
            base = Plain(begun.weights)  # type: ignore[arg-type]
            (folder / BASE).mkdir()
            _save(self.whole, Weights(self.whole, base, self.dtype, False, self.buffer), folder / BASE, self.form.file_bytes)
        return parameters

    def begun(self) -> Start:
        """The model as it was trained, on the meta device, and values of all of it."""
        told = self.opened.state.get("base")
        return start_of(bare(self.config, self.corpus), self.config, alone(), self.opened.read, told, self.form.averages)


def empty_model(config: Config, corpus: Corpus) -> PreTrainedModel:
    """A run's model on the meta device, without the padding rows of its vocabulary."""
    vocabulary = corpus.vocabulary
    return trimmed(skeleton_of(config, corpus), vocabulary.size, vocabulary.padded)


def name_inputs(settings: Path, model: PreTrainedModel) -> None:
    """Let a tokenizer tell the parts of a pair to a model that was trained with them; by default one of ours keeps that to itself."""
    if not settings.is_file() or getattr(model.config, "type_vocab_size", 0) < 2:
        return
    given = json.loads(settings.read_text())
    if "token_type_ids" in inspect.signature(type(model).forward).parameters and "model_input_names" not in given:
        write_json(settings, given | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]})


def _save(whole: PreTrainedModel, weights: Weights, folder: Path, file_bytes: int) -> int:
    """Everything that `save_pretrained` writes, with values from a checkpoint. Returns how many values."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.utils.logging import disable_progress_bar

    shapes = weights.shapes
    if whole.is_remote_code() or revert_weight_conversion(whole, dict(shapes)).keys() != shapes.keys():
        # What is saved is not tensor for tensor what is trained (experts in one tensor, say), or has code beside it.
        whole.load_state_dict({name: weights[name] for name in shapes}, strict=False, assign=True)
        whole.tie_weights()
        disable_progress_bar()
        whole.save_pretrained(folder, max_shard_size=file_bytes)
        return sum(tensor.numel() for tensor in shapes.values())
    whole.config.architectures, whole.config.dtype = [type(whole).__name__], str(weights.dtype).removeprefix("torch.")
    whole.config.save_pretrained(folder)
    if whole.can_generate() and whole.generation_config is not None:
        whole.generation_config.save_pretrained(folder)
    return write_weights(folder, weights, file_bytes)


def trimmed(model: PreTrainedModel, size: int, padded: int) -> PreTrainedModel:
    """A model of the same kind on the meta device, whose vocabulary has no padding rows, with the best attention that it has."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = None
    if config.vocab_size == padded and size < padded:
        config.vocab_size = size
    with torch.device("meta"):
        whole = type(model)(config)
    if getattr(model, "pooler", True) is None:
        without_pooler(whole)
    if model.can_generate():
        whole.generation_config = copy.deepcopy(model.generation_config)
    return whole


def unpadded(model: PreTrainedModel, adapter: Adapter, size: int, padded: int) -> PreTrainedModel:
    """A copy on the CPU, with its adapter, whose vocabulary has no padding rows: they were never trained, nobody should sample them."""
    whole = trimmed(model, size, padded)
    adapter.adapt(whole)
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


def load_exported(path: Path, bare: bool = False) -> PreTrainedModel:
    """The model in a run's `model/`, with the head it was trained with. Raises ConfigError where there is none yet.

    bare: not in PEFT's wrapper, where that puts something in front of documents; the caller does.
    """
    import transformers

    if is_adapter(path):
        from trainer.models.front import as_peft

        return load_adapted(path) if bare else as_peft(load_adapted(path))  # type: ignore[no-any-return]
    if not (path / "config.json").exists():
        raise ConfigError(f"{path}: no model there yet; it is written when the run reaches its budget")
    tell_engines("cuda" if torch.cuda.is_available() else "cpu")
    transformers.utils.logging.disable_progress_bar()
    config: Any = transformers.AutoConfig.from_pretrained(path)
    kind = getattr(transformers, config.architectures[0])
    # A body alone was trained without a pooler; transformers would make one up, and say so.
    bodily = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind.__init__).parameters else {}
    return kind.from_pretrained(path, **bodily)
