"""Modules that strategies wrap, for examples with labels: a model's own head over its own body, without padding where that is known.

The model's forward runs as transformers wrote it, on padded examples, so whatever its head does stays. But between it and its body stand
two hooks: the body is given the packed tokens, and its hidden states are laid out as the head expects them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from trainer.models import padded
from trainer.models.front import in_front, virtual_tokens
from trainer.models.head import without_cache
from trainer.models.headed import Headed, soft_targets
from trainer.models.layout import CAUSAL, MASKED, first_position
from trainer.models.packed import use_attention, use_packed_attention
from trainer.models.padded import Unpacked
from trainer.tasks import Batch

# Its pooled output is made of its hidden states by more than one module.
_POOLS_BY_ITSELF = frozenset({"albert"})


# What a body reads of its tokens.
_GIVEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class ExampleModule(Headed):
    """A model with a head for examples. notice: a line for people; empty where examples are known to keep apart in one packed row."""

    # Whether an output is of each token, or of the example as a whole.
    of_tokens: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        family = model.config.model_type
        self.is_packed = family in (CAUSAL | MASKED) - _POOLS_BY_ITSELF
        self.first = first_position(model.config)
        pad = model.config.pad_token_id
        self.pad = pad if isinstance(pad, int) else 0
        self.has_types = getattr(model.config, "type_vocab_size", 0) > 1
        if self.is_packed:
            use_packed_attention(model)
        elif model.config._attn_implementation == "sdpa":
            use_attention(model, padded.NAME)
        self.notice = "" if self.is_packed else f"{family}: examples are padded, which costs time where their lengths differ"

    def outputs(self, batch: Batch) -> Any:
        """What the model's own forward returns of examples side by side, `[examples, longest, …]`."""
        front = in_front(self.model, batch.inputs, batch.lengths)
        found = self._outputs(replace(batch, inputs=dict(front.inputs), lengths=front.lengths), front.extra)
        if self.of_tokens and (count := virtual_tokens(self.model)):
            for name in [name for name in found if name.endswith("logits")]:
                found[name] = found[name][:, count:]
        return found

    def _outputs(self, batch: Batch, extra: dict[str, Tensor]) -> Any:
        ids = batch.inputs["input_ids"][0]
        unpacked = Unpacked.of(batch.lengths, ids.device)
        given = {"input_ids": unpacked.rows(ids, self.pad), "attention_mask": unpacked.real.long()}
        if self.has_types and "token_type_ids" in batch.inputs:
            given["token_type_ids"] = unpacked.rows(batch.inputs["token_type_ids"][0], 0)
        named = without_cache(type(self.model).forward)
        if not self.is_packed:
            return self.model(**given, **named)
        body = self.model.base_model
        before = body.register_forward_pre_hook(lambda _, args, named: ((), self._packed(batch, named) | extra), with_kwargs=True)
        after = body.register_forward_hook(lambda _, __, output: self._unpacked(output, unpacked))
        try:
            return self.model(**given, **named)
        finally:
            before.remove()
            after.remove()

    def _packed(self, batch: Batch, named: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in named.items() if name not in _GIVEN}
        types = {"token_type_ids": batch.inputs["token_type_ids"]} if named.get("token_type_ids") is not None else {}
        positions = batch.inputs["position_ids"] + self.first
        return kept | types | {"input_ids": batch.inputs["input_ids"], "position_ids": positions, "doc_lens": batch.lengths}

    def _unpacked(self, output: Any, unpacked: Unpacked) -> Any:
        body: Any = self.model.base_model
        hidden = output.last_hidden_state[0]
        laid = hidden.index_select(0, unpacked.source.flatten()).view(*unpacked.source.shape, hidden.shape[-1])
        output.last_hidden_state = laid
        if getattr(output, "pooler_output", None) is not None:
            # The body has pooled the first token of the whole row.
            output.pooler_output = body.pooler(laid)
        return output


class TaggingModule(ExampleModule):
    """One output at places of every example. smoothing: share of a target's weight that is spread over all tags."""

    def __init__(self, model: PreTrainedModel, smoothing: float):
        super().__init__(model)
        self.smoothing = smoothing

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        places = Unpacked.of(batch.lengths, batch.inputs["input_ids"].device).home.index_select(0, batch.inputs["tags_index"])
        return {"tags": self.outputs(batch).logits.flatten(0, 1).index_select(0, places).float()}

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits, inputs = heads["tags"], batch.inputs
        smoothing = self.smoothing if self.training else 0.0
        sums = {"tags": F.cross_entropy(logits, inputs["tags_targets"], reduction="sum", label_smoothing=smoothing)}
        if self.training:
            return sums
        return sums | {"predicted": logits.argmax(-1), "words": inputs["tags_words"], "sizes": inputs["tags_sizes"]}


class ClassificationModule(ExampleModule):
    """One output an example. problem: as transformers names it. weights: of each label in the loss; smoothing: share of a target's weight
    that is spread over all labels."""

    of_tokens = False

    def __init__(self, model: PreTrainedModel, problem: str, weights: list[float] | None, smoothing: float):
        super().__init__(model)
        self.problem, self.smoothing = problem, smoothing
        # A buffer, to lie on the device when a step needs it.
        self.weights: Tensor | None
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def heads(self, batch: Batch) -> dict[str, Tensor]:
        return {"classification": self.outputs(batch).logits.float().index_select(0, batch.inputs["classification_index"])}

    def sums(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits = heads["classification"]
        sums = {"classification": self.loss(logits, batch.inputs["classification_targets"])}
        return sums if self.training else sums | {"logits": logits}

    def divergence(self, term: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Of several labels, of the chances of each; of a number, the squared error."""
        if self.problem == "single_label_classification":
            return super().divergence(term, student, teacher, temperature)
        if self.problem == "multi_label_classification":
            one, other = (torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (student, teacher))
            return soft_targets(one, other, temperature) / student.shape[-1]
        return F.mse_loss(student, teacher, reduction="none").mean(-1).sum()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Summed over examples. logits: `[examples, labels]`; targets: `[examples]` labels, or `[examples, labels]` values."""
        if self.problem == "single_label_classification":
            smoothing = self.smoothing if self.training else 0.0
            return F.cross_entropy(logits, targets, self.weights, reduction="sum", label_smoothing=smoothing)
        if self.problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1).sum()
        return F.mse_loss(logits, targets, reduction="none").mean(-1).sum()
