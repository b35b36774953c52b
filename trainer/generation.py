"""What a trained model writes: a continuation of a prompt, words in place of [MASK], or what stands behind sentinels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainer.choices import ConfigError
from trainer.data.vocabularies import sentinels_of
from trainer.streams import seed_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedModel

    from trainer.config import Config
    from trainer.predicting import Predictor


@dataclass
class Guess:
    """A token for one [MASK], with its probability."""

    token: str
    probability: float


@dataclass
class Writer:
    """A model with its tokenizer. limit: tokens that it has learned to see at once."""

    model: PreTrainedModel
    tokenizer: Any
    limit: int

    def __post_init__(self) -> None:
        from trainer.models.front import as_peft, prefix_length, virtual_ids

        # What is learned in front of every document stands in front of what is written, too.
        self.front = list(virtual_ids(self.model))
        if prefix_length(self.model):
            self.model = as_peft(self.model)

    @property
    def fills(self) -> bool:
        """Whether the model fills in masked tokens instead of going on with a text."""
        return (
            self.tokenizer.mask_token_id is not None
            and not getattr(self.model.config, "is_decoder", False)
            and not self.model.can_generate()
        )

    @property
    def infills(self) -> bool:
        """Whether the model writes what stands behind sentinels, instead of going on with a text."""
        return bool(self.model.config.is_encoder_decoder)

    def write(self, prompt: str, max_tokens: int = 200, temperature: float = 0.8, top_k: int = 50, seed: int = 0) -> str:
        """The prompt and what the model adds: at most `max_tokens`, less where a document ends or `limit` is reached.

        temperature=0 takes the likeliest token each time. Raises ConfigError where the prompt leaves no room.
        """
        if self.infills:
            return self.infill(prompt, max_tokens, temperature, top_k, seed)
        ids = self._ids(prompt)
        room = min(max_tokens, self._room(ids))
        added = self._generated(ids, room, temperature, top_k, seed)[len(ids) :]
        return prompt + str(self.tokenizer.decode(added, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def infill(self, prompt: str, max_tokens: int = 200, temperature: float = 0.8, top_k: int = 50, seed: int = 0) -> str:
        """The prompt of an encoder–decoder model, with what the model writes for each <extra_id_N> in its place."""
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not set(self._sentinels()).intersection(ids):
            raise ConfigError(f"prompt: {prompt!r} has no <extra_id_0>; this model fills in spans, e.g. prompt='The <extra_id_0> is here.'")
        return str(self.tokenizer.decode(self._infilled(ids, max_tokens, temperature, top_k, seed), clean_up_tokenization_spaces=False))

    def _infilled(self, ids: list[int], max_tokens: int, temperature: float, top_k: int, seed: int) -> list[int]:
        read = [*ids, self.tokenizer.eos_token_id]
        self._room(read)
        sentinels, spans, current = set(self._sentinels()), dict[int, list[int]](), -1
        for token in self._generated(read, max_tokens, temperature, top_k, seed)[1:]:
            if token in sentinels:
                current = token
            elif token == self.tokenizer.eos_token_id:
                break
            else:
                spans.setdefault(current, []).append(token)
        return [token for place in ids for token in (spans.get(place, []) if place in sentinels else [place])]

    def _sentinels(self) -> tuple[int, ...]:
        return sentinels_of(self.tokenizer.get_vocab())

    def _room(self, ids: list[int]) -> int:
        """How many more tokens the model has learned to see. Raises ConfigError where there is none."""
        if len(ids) >= self.limit + self.infills:
            raise ConfigError(f"prompt: {len(ids)} tokens, but the model has learned to see {self.limit} at once; give a shorter one")
        return self.limit - len(ids)

    def _generated(self, ids: list[int], most: int, temperature: float, top_k: int, seed: int) -> list[int]:
        """Ids and at most so many tokens after them; of an encoder–decoder model, what its decoder begins with and writes."""
        import torch

        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k}
        seed_all(seed, "generate")
        inputs = torch.tensor([[*self.front, *ids]], device=self.model.device)
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        with torch.no_grad():
            found = self.model.generate(  # type: ignore[operator]
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=most,
                pad_token_id=padding,
                eos_token_id=self.tokenizer.eos_token_id,
                **sampling,
            )
        tokens: list[int] = found[0].tolist()
        return tokens if self.infills else tokens[len(self.front) :]

    def fill(self, prompt: str, top: int = 5) -> list[list[Guess]]:
        """The likeliest tokens for every [MASK] of the prompt, in order. Raises ConfigError where there is none."""
        ids = self.tokenizer(prompt)["input_ids"]
        if self.tokenizer.mask_token_id not in ids:
            mask = self.tokenizer.mask_token
            raise ConfigError(f"prompt: {prompt!r} has no {mask}; this model fills in words, e.g. prompt='The {mask} is here.'")
        return [
            [Guess(self.tokenizer.decode([token]), probability) for token, probability in guesses] for guesses in self._guesses(ids, top)
        ]

    def restore(self, ids: list[int], every: int = 6) -> str:
        """A text with every sixth token masked, and below it what the model puts there; spans of three, behind sentinels."""
        tokenizer, ids = self.tokenizer, list(ids)
        if self.infills:
            sentinels, ids = self._sentinels(), [token for token in ids if token != tokenizer.eos_token_id]
            parts = [ids[start : start + 3 * every] for start in range(0, len(ids), 3 * every)]
            short = [token for part, sentinel in zip(parts, sentinels, strict=False) for token in (*part[:-3], sentinel)]
            return f"{tokenizer.decode(short)}\n\n→ {tokenizer.decode(self._infilled(short, len(ids), 0.0, 1, 0))}"
        places = range(every - 1, len(ids), every)
        hidden = [tokenizer.mask_token_id if place in places else token for place, token in enumerate(ids)]
        best = self._guesses([tokenizer.cls_token_id, *hidden, tokenizer.sep_token_id], 1)
        for place, guesses in zip(places, best, strict=True):
            ids[place] = guesses[0][0]
        return f"{tokenizer.decode(hidden)}\n\n→ {tokenizer.decode(ids)}"

    def _guesses(self, ids: list[int], top: int) -> list[list[tuple[int, float]]]:
        """Token and probability of the likeliest ones at every mask of a sequence with its special tokens."""
        import torch

        if len(ids) > self.limit:
            raise ConfigError(f"prompt: {len(ids)} tokens, but the model has learned to see {self.limit} at once; give a shorter one")
        inputs = torch.tensor([[*self.front, *ids]], device=self.model.device)
        places = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
        with torch.no_grad():
            output = self.model(input_ids=inputs)
        logits = output.prediction_logits if hasattr(output, "prediction_logits") else output.logits
        best = logits[0, len(self.front) :][places].float().softmax(-1).topk(top)
        return [
            list(zip(tokens, probabilities, strict=True))
            for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _ids(self, prompt: str) -> list[int]:
        # A document begins after the token that ends the one before it: so was training.
        begin = self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        return [begin, *self.tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def open_writer(path: Path, sequence_length: int | None = None) -> Writer:
    """The model and tokenizer in a `model/` directory. sequence_length: that of training, where it is less than the model's positions.

    Raises ConfigError where there is no model yet.
    """
    import transformers

    from trainer.export import load_exported
    from trainer.models.front import prefix_length, virtual_tokens
    from trainer.models.layout import first_position

    # A bar for a file on the disk, and a warning of padding where there is none (generation leaves an all-true mask out).
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    model = load_exported(path, bare=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        positions -= first_position(model.config) + virtual_tokens(model) + prefix_length(model)
    # Positions that training never reached have random embeddings.
    limits = [limit for limit in (positions, sequence_length) if limit is not None]
    return Writer(model, tokenizer, min(limits, default=2048))


def replies(
    path: Path, config: Config, prompt: str, max_tokens: int, temperature: float, top_k: int, seeds: Iterable[int]
) -> Iterator[str]:
    """What a model that answers by texts says to a prompt, once for each seed. path: its `model/` directory; config: of its run."""
    import torch

    from trainer.predicting import Predictor

    predictor = Predictor(path, config, torch.device("cpu"))
    example = predictor.task.asked(prompt)  # type: ignore[attr-defined]
    for seed in seeds:
        yield reply(predictor, example, max_tokens, temperature, top_k, seed)


def reply(predictor: Predictor, example: dict[str, Any], max_tokens: int, temperature: float, top_k: int, seed: int) -> str:
    """The same of an example, by a model that is loaded. Raises ConfigError where the example leaves no room for an answer."""
    from trainer.models.writing import Decoding

    task, module = cast(Any, predictor.task), cast(Any, predictor.module)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {}
    module.decoding = Decoding(min(max_tokens, task.max_target_length), {**task.generation, **sampling})
    seed_all(seed, "generate")
    (answer,) = predictor.answers([example], 1)
    if not answer:
        raise ConfigError(f"prompt: it leaves no room within the {predictor.length} tokens that this model reads; give a shorter one")
    return str(next(iter(answer.values())))
