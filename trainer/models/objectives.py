"""What transformers calls the networks that an objective needs, and how one is made of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Objective → the class that finds a network's own, and the table of those that there are.
HEADS = {
    "causal": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    "masked": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING"),
    "pretraining": ("AutoModelForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING"),
    "denoising": ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    "sequence_classification": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    "token_classification": ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
    "question_answering": ("AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING"),
    "embedding": ("AutoModel", "MODEL_MAPPING"),
}
# Objectives on examples with labels: every family has a head for them.
ON_EXAMPLES = ("sequence_classification", "token_classification", "question_answering", "embedding")


def has_head(config: Any, objective: str) -> bool:
    """Whether there is a network of this configuration with the head of an objective."""
    # Others are also pretrained by two heads, but not by the next sentence.
    return type(config) in _found(objective)[1] and (objective != "pretraining" or config.model_type == "bert")


def with_head(objective: str, config: Any, labels: Mapping[str, Any], **options: Any) -> PreTrainedModel:
    """A network with the head of an objective, its values as its constructor makes them. labels: settings of its configuration that
    describe the head's outputs. options: of transformers' `from_config`."""
    for key, value in labels.items():
        setattr(config, key, value)
    model: PreTrainedModel = _found(objective)[0].from_config(config, **options)
    return without_pooler(model) if objective == "embedding" else model


def without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """A body without what some have behind their last layer for the next sentence: nothing would train it."""
    for name in ("pooler", "pooler_activation"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    return model


def objective_of(model: PreTrainedModel) -> str | None:
    """The objective that the head of a network is for."""
    return next((name for name in HEADS if _found(name)[1].get(type(model.config), None) is type(model)), None)


def _found(objective: str) -> list[Any]:
    import transformers

    return [getattr(transformers, name) for name in HEADS[objective]]
