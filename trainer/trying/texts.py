"""Forms of models that write: a text from a text, a dialogue, a continuation, words in place of masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError
from trainer.tasks.instruct import ASSISTANT
from trainer.tasks.instruct import turns as turns_of
from trainer.tasks.writing import Writing
from trainer.trying.forms import Fields, Form, Input

if TYPE_CHECKING:
    from trainer.generation import Writer
    from trainer.predicting import Predictor

# Turns of a dialogue.
_TURNS = 200
TOKENS = Input("max_tokens", "Tokens, at most", 0, "100", least=1, most=1000)
TEMPERATURE = Input("temperature", "Temperature", 0, "0.8", "0: always the likeliest", least=0, most=5, step="0.1")
_TOP_K = 50


class Reply(Fields):
    """A text from a text."""

    what = "writes a text from a text"
    button: ClassVar[str] = "Write"

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        assert isinstance(predictor.task, Writing)
        most = predictor.task.max_target_length
        self.tokens = Input("max_tokens", "Tokens, at most", 0, str(most), least=1, most=most)
        self.temperature = Input("temperature", "Temperature", 0, "0", TEMPERATURE.hint, least=0, most=5, step="0.1")
        self.inputs = (Input("source", "Source", 6), self.tokens, self.temperature)

    def reply(self, example: dict[str, Any], given: Mapping[str, Any]) -> str:
        """What the model writes of an example."""
        from trainer.generation import reply

        return reply(self.predictor, example, given["max_tokens"], given["temperature"], _TOP_K, seed=0)

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"view": "text", "given": "", "added": self.reply({"source": given["source"]}, given)}


class Chat(Reply):
    """A dialogue. said: what was said before, which the page keeps."""

    what = "answers in a dialogue"
    button = "Send"

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        self.inputs = (Input("message", "Your turn", 3), self.tokens, self.temperature)

    def read(self, given: Mapping[str, str]) -> dict[str, Any]:
        return super().read(given) | {"said": turns(given.get("said", ""))}

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        said = [*given["said"], {"role": "user", "content": given["message"]}]
        said.append({"role": ASSISTANT, "content": self.reply({"messages": said}, given)})
        return self.standing({"said": json.dumps(said)})

    def standing(self, given: Mapping[str, str]) -> dict[str, Any]:
        try:
            said = turns(given.get("said", ""))
        except ConfigError:
            said = []
        return {"view": "chat", "messages": said, "said": json.dumps(said)}

    def filled(self, example: Mapping[str, Any]) -> dict[str, str]:
        asked = (turn["content"] for turn in turns_of(example, 0) if turn["role"] != ASSISTANT and turn["role"] != "system")
        return {"message": next(asked, "")}


def turns(text: str) -> list[dict[str, str]]:
    """What was said, as the page sends it back. Raises ConfigError where somebody has changed it."""
    try:
        found = json.loads(text) if text else []
        clean = [{"role": turn["role"], "content": turn["content"]} for turn in found]
    except (ValueError, TypeError, KeyError):
        raise ConfigError("the dialogue cannot be read; start anew") from None
    if len(clean) > _TURNS or not all(isinstance(value, str) for turn in clean for value in turn.values()):
        raise ConfigError("the dialogue cannot be read, or is too long; start anew")
    return clean


class Continuation(Form):
    """A causal model goes on with a text; an encoder–decoder model fills in its spans."""

    what = "goes on with a text"
    button = "Write"

    def __init__(self, writer: Writer):
        self.writer = writer
        self.inputs = (Input("prompt", "Prompt", 5), TOKENS, TEMPERATURE, Input("seed", "Seed", 0, "0", most=2**31))

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        prompt = given["prompt"]
        text = self.writer.write(prompt, given["max_tokens"], given["temperature"], _TOP_K, given["seed"])
        goes_on = text.startswith(prompt)
        return {"view": "text", "given": prompt if goes_on else "", "added": text[len(prompt) :] if goes_on else text}

    def filled(self, example: Mapping[str, Any]) -> dict[str, str]:
        from trainer.sampling import beginning

        return {"prompt": beginning(example["text"])}


class Infilling(Continuation):
    """What stands behind sentinels."""

    what = "fills in spans of a text: <extra_id_0>, <extra_id_1> …"

    def filled(self, example: Mapping[str, Any]) -> dict[str, str]:
        return {"prompt": hidden(example["text"], "<extra_id_0>")}


class Filling(Form):
    """Words in place of masks."""

    what = "fills in masked words"
    button = "Fill in"

    def __init__(self, writer: Writer):
        self.writer, self.mask = writer, writer.tokenizer.mask_token
        self.inputs = (Input("prompt", "Text", 4, f"The {self.mask} is here.", f"{self.mask} stands for a word"),)

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        places = self.writer.fill(given["prompt"])
        parts = given["prompt"].split(self.mask)
        best = [(part, guesses[0].token.strip()) for part, guesses in zip(parts, places, strict=False)]
        return {"view": "guesses", "best": best, "rest": "".join(parts[len(best) :]), "places": places}

    def filled(self, example: Mapping[str, Any]) -> dict[str, str]:
        return {"prompt": hidden(example["text"], self.mask)}


def hidden(text: str, sign: str) -> str:
    """A text with a sign in place of the word in its middle; of one without blanks, of its middle character."""
    words, blank = (text.split(), " ") if " " in text.strip() else ([*text.strip()], "")
    words[len(words) // 2 : len(words) // 2 + 1] = [sign]
    return blank.join(words)
