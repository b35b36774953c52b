"""Modules that strategies wrap, for answers that are texts: losses of what is to be written, and in evaluation the texts themselves.

A text is written within the module's forward, so that every strategy has the parameters where they are needed, and every rank goes
on until all of them are done: where parameters are cut, all ranks take part in each step of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from trainer.models import packed
from trainer.models.front import as_peft, in_front, prefix_length, virtual_ids
from trainer.models.heads import VocabularyModule
from trainer.models.layout import layout_of, pairs_of
from trainer.models.packed import use_attention
from trainer.models.padded import Unpacked
from trainer.tasks import Batch

# What of a pretrained model's own way of writing belongs to its tokens.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True)
class Decoding:
    """How texts are written. longest: tokens, at most; options: as transformers' GenerationConfig names them."""

    longest: int
    options: Mapping[str, Any]

    def settings(self, model: Any, vocabulary_size: int) -> GenerationConfig:
        """All that transformers has to know. vocabulary_size: ids from there on are padding of the table, and never written."""
        theirs = {name: getattr(model.generation_config, name, None) for name in _IDS}
        own = {name: getattr(model.config, name, None) for name in _IDS}
        ids = {name: own[name] if value is None else value for name, value in theirs.items()}
        if ids["pad_token_id"] is None:
            end = ids["eos_token_id"]
            ids["pad_token_id"] = end[0] if isinstance(end, list) else end
        padding = list(range(vocabulary_size, model.get_output_embeddings().weight.shape[0]))
        never = {"suppress_tokens": padding} if padding else {}
        return GenerationConfig(max_new_tokens=self.longest, **ids, **never, **{"do_sample": False, **self.options})


class WritingModule(VocabularyModule):
    """forward(batch) → {term: sum over targets}; in evaluation mode with `decoding` also `written`: ids `[documents, longest]`, and
    without it `rows`, zeros for each document.

    notice: a line for people on how documents are kept apart.
    """

    def __init__(self, model: PreTrainedModel, vocabulary_size: int, regularized: bool, term: str, decoding: Decoding | None):
        super().__init__(vocabulary_size, regularized)
        self.term, self.decoding = term, decoding
        self.layout, self.notice = self.layout_of(model)
        self.model = model

    def layout_of(self, model: PreTrainedModel) -> tuple[Any, str]:
        """How documents go through the model, set up in it, and a line for people."""
        raise NotImplementedError

    def written(self, batch: Batch, settings: GenerationConfig) -> Tensor:
        """Ids `[documents, longest]` of what the model writes for each document, from the first one that is its own."""
        raise NotImplementedError

    def more(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if self.training:
            return {}
        if self.decoding is None:
            return {"rows": torch.zeros(len(batch.lengths), dtype=torch.int64, device=batch.inputs["input_ids"].device)}
        with self._attending():
            return {"written": self.written(batch, self.decoding.settings(self.model, self.vocabulary_size))}

    def generated(self, settings: GenerationConfig, **inputs: Tensor) -> Tensor:
        """What transformers writes."""
        together = dist.is_initialized() and dist.get_world_size() > 1
        model: Any = as_peft(self.model) if prefix_length(self.model) else self.model
        found: Tensor = model.generate(**inputs, generation_config=settings, synced_gpus=together)
        return found

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """Tokens that are written one by one attend to a cache, which a packed row has no place for."""
        own = self.model.config._attn_implementation
        use_attention(self.model, "sdpa" if own == packed.NAME else own)
        try:
            yield
        finally:
            use_attention(self.model, own)


class PromptWriting(WritingModule):
    """A decoder alone, which goes on from a prompt."""

    def layout_of(self, model: PreTrainedModel) -> tuple[Any, str]:
        return layout_of(model, causal=True)

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        return {self.term: self.layout.logits(self.model, batch.inputs, batch.lengths, batch.inputs[f"{self.term}_index"])}

    def written(self, batch: Batch, settings: GenerationConfig) -> Tensor:
        documents, prompts = batch.inputs["input_ids"][0].split(batch.lengths), batch.prompts
        virtual = documents[0].new_tensor(list(virtual_ids(self.model)))
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None:
            # Positions that the model does not have are never written at: a prompt leaves room, whatever prompts are beside it.
            most -= len(virtual) + prefix_length(self.model)
            settings.max_new_tokens = min(settings.max_new_tokens, most // 2)  # type: ignore[type-var]
            prompts = tuple(min(size, most - settings.max_new_tokens) for size in prompts)
        longest = len(virtual) + max(prompts)
        ids = documents[0].new_full((len(documents), longest), settings.pad_token_id)  # type: ignore[arg-type]
        mask = torch.zeros_like(ids)
        # To the left, so that what is written follows the prompt.
        for row, (document, size, whole) in enumerate(zip(documents, prompts, batch.prompts, strict=True)):
            begin = longest - len(virtual) - size
            ids[row, begin:], mask[row, begin:] = torch.cat([virtual, document[whole - size : whole]]), 1
        return self.generated(settings, input_ids=ids, attention_mask=mask)[:, longest:]


class PairWriting(WritingModule):
    """An encoder that reads and a decoder that writes."""

    def layout_of(self, model: PreTrainedModel) -> tuple[Any, str]:
        return pairs_of(model)

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        return {self.term: self.layout.logits(self.model, batch, batch.inputs[f"{self.term}_index"])}

    def written(self, batch: Batch, settings: GenerationConfig) -> Tensor:
        front = in_front(self.model, batch.inputs, batch.lengths)
        read = front.inputs["input_ids"][0]
        source = Unpacked.of(front.lengths, read.device)
        ids = source.rows(read, settings.pad_token_id)  # type: ignore[arg-type]
        return self.generated(settings, input_ids=ids, attention_mask=source.real.long())[:, 1:]
