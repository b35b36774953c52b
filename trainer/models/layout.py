"""How packed documents go through a model: as one row, or padded where its documents would see each other.

Families that are known to keep packed documents apart are listed here; the tests show it of each. Of any other model it is proven on
two short documents before training starts, packed first, then padded: their logits must be those of each document alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.choices import ConfigError
from trainer.models import packed, padded
from trainer.models.deferred import real_copy
from trainer.models.front import in_front
from trainer.models.head import logits_at
from trainer.models.packed import use_attention, use_packed_attention
from trainer.models.padded import Padded, Pairs
from trainer.tasks import Batch

# By transformers' model_type: those whose causal head sees nothing ahead, and those whose masked head sees all.
CAUSAL = frozenset({"gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2"})
MASKED = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert"})
# Their first position is the one after that of padding; position_ids are counted from there.
AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text"})

_LAYERS = {"full_attention", "sliding_attention"}
_LENGTHS = (9, 6)
_TOLERANCE = 1e-4  # of the largest logit


class Layout(Protocol):
    """A way of documents through a model."""

    def logits(self, model: nn.Module, inputs: Mapping[str, Tensor], lengths: tuple[int, ...], rows: Tensor | None) -> Tensor:
        """Logits `[rows, vocabulary]` at rows of the packed tokens, or at all. inputs: `[1, tokens]`; lengths: of the documents."""
        ...


@dataclass(frozen=True)
class Packed:
    """One row without padding. first: the model's first position."""

    first: int = 0

    def logits(self, model: nn.Module, inputs: Mapping[str, Tensor], lengths: tuple[int, ...], rows: Tensor | None) -> Tensor:
        """As Layout has it."""
        front = in_front(model, inputs, lengths)
        ids, positions = front.inputs["input_ids"], front.inputs["position_ids"]
        positions = positions + self.first if self.first else positions
        return logits_at(model, front.rows(rows), input_ids=ids, position_ids=positions, doc_lens=front.lengths, **front.extra)


def first_position(config: Any) -> int:
    """The position of a document's first token, by a transformers configuration."""
    return int(config.pad_token_id) + 1 if config.model_type in AFTER_PADDING else 0


def layout_of(model: Any, causal: bool) -> tuple[Layout, str]:
    """The layout that keeps documents apart, set up in the model, and a line for people where it had to be found out.

    Raises ConfigError where not even padded documents give what each gives alone, or where a causal head sees what it is to predict.
    """
    if model.config.model_type in (CAUSAL if causal else MASKED):
        use_packed_attention(model)
        return Packed(first_position(model.config)), ""
    inputs = _probe(model.config)
    with _trial(model) as tried, torch.no_grad():
        return _proven(tried, inputs, causal)


def pairs_of(model: Any) -> tuple[Pairs, str]:
    """The layout of an encoder–decoder model, set up in the model, and a line for people. Raises ConfigError as `layout_of`."""
    config = model.config
    ids = (getattr(config, name, None) for name in ("pad_token_id", "decoder_start_token_id"))
    pairs, inputs = Pairs(*(number if isinstance(number, int) else 0 for number in ids)), _probe(config)
    tokens = {"input_ids": inputs["input_ids"], "decoder_ids": inputs["input_ids"].flip(1)}
    whole = Batch(tokens, _LENGTHS, {}, decoded=_LENGTHS[::-1])
    reads, writes = (tokens[name].split(sizes, dim=1) for name, sizes in (("input_ids", whole.lengths), ("decoder_ids", whole.decoded)))
    own = config._attn_implementation
    with _trial(model) as tried, torch.no_grad():
        alone = torch.cat([_one_pair(pairs, tried, read, written) for read, written in zip(reads, writes, strict=True)])
        for name in [padded.NAME, own] if own == "sdpa" else [own]:
            use_attention(tried, name)
            if _apart(pairs.logits(tried, whole, None), alone) <= _TOLERANCE:
                return pairs, f"{config.model_type}: documents are padded, for its encoder and for its decoder"
    raise ConfigError(f"model.path: {config.model_type}: its documents influence each other, also padded; choose another architecture")


@contextmanager
def _trial(model: Any) -> Iterator[Any]:
    """The model in evaluation mode, to try ways of attending on; one without values by a whole copy on the CPU, with its first values.

    What the trial has settled on is set up in the model itself.
    """
    tried = real_copy(model) if next(model.parameters()).is_meta else model
    was_training = model.training
    tried.eval()
    try:
        yield tried
    finally:
        model.train(was_training)
    if tried is not model:
        chosen = tried.config._attn_implementation
        use_packed_attention(model) if chosen == packed.NAME else use_attention(model, chosen)


def _one_pair(pairs: Pairs, model: Any, read: Tensor, written: Tensor) -> Tensor:
    batch = Batch({"input_ids": read, "decoder_ids": written}, (read.shape[1],), {}, decoded=(written.shape[1],))
    return pairs.logits(model, batch, None)


def _proven(model: Any, inputs: dict[str, Tensor], causal: bool) -> tuple[Layout, str]:
    family = model.config.model_type
    documents = inputs["input_ids"].split(_LENGTHS, dim=1)
    alone = torch.cat([logits_at(model, None, input_ids=document) for document in documents])
    start = _LENGTHS[0] // 2
    if causal and _apart(logits_at(model, None, input_ids=documents[0][:, :start]), alone[:start]) > _TOLERANCE:
        raise ConfigError(
            f"task=clm: in this {family} a token sees those after it, which it is to predict; "
            "use task=mlm, or a configuration that makes it a decoder (is_decoder: true)"
        )
    why = problem = ""
    for layout in _candidates(model):
        try:
            apart = _apart(layout.logits(model, inputs, _LENGTHS, None), alone)
        except Exception as error:  # what an unknown model makes of unknown keywords is its own
            apart, problem = float("inf"), f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            problem = f"its logits differ by {apart:.0e} of the largest"
        if apart <= _TOLERANCE:
            if isinstance(layout, Packed):
                return layout, f"{family}: packed; two documents in one row gave the logits that each has alone"
            packed = f"; in one packed row, {why}" if why else ""
            return layout, f"{family}: documents are padded, which costs time where their lengths differ{packed}"
        why = why or problem
    raise ConfigError(
        f"model.path: {family}: its documents influence each other, packed ({why}) and padded ({problem}): "
        "it cannot be trained on several at once; choose another architecture"
    )


def _apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def _candidates(model: Any) -> Iterator[Layout]:
    """Layouts from the fastest on, each set up in the model when it is taken."""
    own, pad = model.config._attn_implementation, model.config.pad_token_id
    # Layers that see chunks, or something else that two short documents do not show, are not told to an attention function.
    if _LAYERS.issuperset(getattr(model.config.get_text_config(), "layer_types", None) or ()):
        use_packed_attention(model)
        yield Packed(first_position(model.config))
    for name in [padded.NAME, own] if own == "sdpa" else [own]:
        use_attention(model, name)
        yield Padded(pad if isinstance(pad, int) else 0)


def _probe(config: Any) -> dict[str, Tensor]:
    """Two documents of arbitrary tokens, packed; none is padding, from which some models count positions."""
    drawn = torch.randint(0, config.get_text_config().vocab_size - 1, (1, sum(_LENGTHS)), generator=torch.Generator().manual_seed(0))
    if isinstance(config.pad_token_id, int):
        drawn += drawn >= config.pad_token_id
    return {"input_ids": drawn, "position_ids": torch.cat([torch.arange(length) for length in _LENGTHS])[None]}
