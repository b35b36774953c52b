"""The lines of Python in a model card that load what was exported and use it once, and what a hub calls such a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.adapters.folder import BASE
from trainer.models.objectives import HEADS, ON_EXAMPLES
from trainer.tasks.contrastive import Contrastive
from trainer.tasks.relation import Relation
from trainer.tasks.seq2seq import SOURCE, Seq2Seq

if TYPE_CHECKING:
    from trainer.adapters import Adapter
    from trainer.config import Config

# What a hub calls the use of a model, by its head.
PIPELINES = {
    "causal": "text-generation",
    "masked": "fill-mask",
    "pretraining": "fill-mask",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "embedding": "sentence-similarity",
}
_MASKED = 'tokens = tokenizer(f"The {tokenizer.mask_token} is here.", return_tensors="pt")'
_WRITES = "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=40)[0]))"
_USES = {
    "causal": ['tokens = tokenizer("Once upon a time", return_tensors="pt")', _WRITES],
    "masked": [_MASKED, "print(tokenizer.decode(model(**tokens).logits[0].argmax(-1)))"],
    "pretraining": [_MASKED, "print(tokenizer.decode(model(**tokens).prediction_logits[0].argmax(-1)))"],
    "denoising": ['tokens = tokenizer("The <extra_id_0> is here.", return_tensors="pt")', _WRITES],
    "token_classification": [
        'tokens = tokenizer("A sentence of some words.", return_tensors="pt")',
        "print([model.config.id2label[tag] for tag in model(**tokens).logits[0].argmax(-1).tolist()])",
    ],
    "question_answering": [
        'tokens = tokenizer("Where is it?", "It is here.", return_tensors="pt")',
        "found = model(**tokens)",
        "first, last = found.start_logits[0].argmax(), found.end_logits[0].argmax()",
        'print(tokenizer.decode(tokens["input_ids"][0, first : last + 1]))',
    ],
}
# Of classification, by what a label is.
_ANSWERS = {
    "single_label_classification": "print(model.config.id2label[model(**tokens).logits[0].argmax().item()])",
    "multi_label_classification": "print([model.config.id2label[at] for at, score in enumerate(model(**tokens).logits[0]) if score > 0])",
    "regression": "print(model(**tokens).logits[0].item())",
}
# Of a text's tokens, by `task.pooling`.
_POOLED = {"mean": "hidden.mean(0)", "first": "hidden[0]", "last": "hidden[-1]"}
# More labels than these are not spelled out.
_SPELLED = 50


def library_of(adapter: Adapter, merged: bool) -> str:
    """The library whose format a folder has."""
    if not adapter.adapts or merged:
        return "transformers"
    return "shardloom" if adapter.name == "bottleneck" else "peft"


def loads(config: Config, labels: dict[str, Any], place: str, base: str | None, merged: bool, at_hub: bool) -> str:
    """Python that loads an exported model and uses it once.

    labels: settings of its configuration that describe the head's outputs. base: where the model lies that an adapter belongs to; None:
    beside it, in the same folder. place: where all of it lies, at_hub or on a disk.
    """
    kind, library = HEADS.get(config.objective, ("AutoModel",))[0], library_of(config.adapter, merged)
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({place!r})"
    if library == "shardloom":
        lines = [
            "from pathlib import Path",
            "from trainer.export import load_exported",
            "from transformers import AutoTokenizer",
            tokenizer,
        ]
        lines.append(f"model = load_exported(Path({place!r})).eval()")
    elif library == "peft":
        # Beside an adapter lies its model with its head; another one knows nothing of these labels.
        told = _spelled(labels) if base is not None and config.objective in ON_EXAMPLES else ""
        where = f"{base!r}{told}" if base is not None else repr(f"{place}/{BASE}")
        lines = ["from peft import PeftModel", f"from transformers import {kind}, AutoTokenizer", tokenizer]
        lines += [f"base = {kind}.from_pretrained({where})", f"model = PeftModel.from_pretrained(base, {place!r}).eval()"]
        if base is None and at_hub:
            # transformers takes a repository with an adapter for that adapter, whatever folder of it is asked for.
            lines = [line.replace(repr(f"{place}/{BASE}"), f'folder + "/{BASE}"').replace(repr(place), "folder") for line in lines]
            lines[:0] = ["from huggingface_hub import snapshot_download"]
            lines.insert(3, f"folder = snapshot_download({place!r})")
    else:
        lines = [f"from transformers import {kind}, AutoTokenizer", tokenizer, f"model = {kind}.from_pretrained({place!r})"]
    if isinstance(config.task, Contrastive):
        lines.insert(0, "import torch")
    used = _used(config, labels.get("problem_type"))
    return "\n".join([*lines, *(["", *used] if used else [])])


def _spelled(labels: dict[str, Any]) -> str:
    names = labels.get("id2label")
    if names and len(names) <= _SPELLED:
        return f", id2label={names!r}"
    return f", num_labels={labels['num_labels']}" if "num_labels" in labels else ""


def _used(config: Config, problem: str | None) -> list[str]:
    if isinstance(config.task, Relation):
        head, tail, *_ = config.task.marks
        return [
            f'tokens = tokenizer("{head} Ann {head} was born in {tail} Rome {tail}.", return_tensors="pt")',
            _ANSWERS["single_label_classification"],
        ]
    if isinstance(config.task, Contrastive):
        return [
            'hidden = model(**tokenizer("A text.", return_tensors="pt")).last_hidden_state[0]',
            f"embedding = torch.nn.functional.normalize({_POOLED[config.task.pooling.value]}, dim=-1)",
        ]
    if config.objective == "sequence_classification":
        answer = _ANSWERS.get(problem or "", "print(model(**tokens).logits[0])")
        return ['tokens = tokenizer("A text to judge.", return_tensors="pt")', answer]
    if config.task.name == "instruct":
        asked = 'tokens = tokenizer.apply_chat_template([{"role": "user", "content": "Hello?"}], add_generation_prompt=True, '
        return [asked + 'return_tensors="pt", return_dict=True)', _WRITES]
    if isinstance(config.task, Seq2Seq):
        return [f'tokens = tokenizer({_source(config, config.task)}, return_tensors="pt")', _WRITES]
    return _USES.get(config.objective, [])


def _source(config: Config, task: Seq2Seq) -> str:
    """A source as the model has read it, in Python: with its prompt, and with what a tokenizer of ours does not put there by itself."""
    alone = config.objective == "causal"
    text = task.written(alone).replace(SOURCE, "A text to start from.")
    if alone:
        return f"(tokenizer.bos_token or tokenizer.eos_token) + {text!r}, add_special_tokens=False"
    return repr(text) + " + tokenizer.eos_token" * (config.tokenizer.name == "train")
