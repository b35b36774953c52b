"""What a person is asked for each kind of model, and what is shown of its answer; the model is asked as every other verb asks it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError
from trainer.tasks.classification import Classification, Problem
from trainer.tasks.contrastive import Contrastive
from trainer.tasks.entities import HEAD, TAIL, inline, located
from trainer.tasks.instruct import Instruct
from trainer.tasks.labelled import Labelled
from trainer.tasks.question_answering import QuestionAnswering
from trainer.tasks.relation import Relation
from trainer.tasks.token_classification import OUTSIDE, TokenClassification
from trainer.tasks.writing import Writing

if TYPE_CHECKING:
    import torch

    from trainer.config import Config
    from trainer.predicting import Predictor
    from trainer.run import RunDir

# Characters of one input.
LONGEST = 20_000
# Words as corpora part them: what stands between blanks, and each sign of punctuation by itself.
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")
_BATCH_TOKENS = 8192
_TYPED = "where the model was trained with types"
# Answers beside the best one.
_SHOWN = 5


@dataclass(frozen=True)
class Input:
    """A field of the page. lines: of a text; 0: a number from `least` to `most`."""

    name: str
    label: str
    lines: int = 4
    value: str = ""
    hint: str = ""
    least: float = 0
    most: float = 0
    step: str = "1"
    optional: bool = False

    def read(self, given: str) -> Any:
        """What was typed. Raises ConfigError, which the page shows."""
        if self.lines:
            if not given.strip() and not self.optional:
                raise ConfigError(f"{self.label}: there is nothing in it yet")
            if len(given) > LONGEST:
                raise ConfigError(f"{self.label}: {len(given):,} characters; at most {LONGEST:,}")
            return given.replace("\r\n", "\n").strip()
        try:
            number = float(given)
        except ValueError:
            raise ConfigError(f"{self.label}: {given!r} is no number") from None
        if not self.least <= number <= self.most:
            raise ConfigError(f"{self.label}: {given}; from {self.least:g} to {self.most:g}")
        return int(number) if self.step == "1" else number


class Form:
    """What is asked, and how it is answered. what: a line below the name of the run; button: what sending does."""

    what: ClassVar[str]
    button: ClassVar[str] = "Ask"
    inputs: tuple[Input, ...]

    def read(self, given: Mapping[str, str]) -> dict[str, Any]:
        """All that was typed. Raises ConfigError for the first that will not do."""
        return {each.name: each.read(given.get(each.name, each.value)) for each in self.inputs}

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the page shows, by the name of its part as `view`. Raises ConfigError for what the model cannot be asked."""
        raise NotImplementedError

    def standing(self, given: Mapping[str, str]) -> dict[str, Any]:
        """What the page shows where nothing is answered."""
        return {}

    def filled(self, example: Mapping[str, Any]) -> dict[str, str]:
        """An example of the data as if it had been typed."""
        return {each.name: str(example[each.name]) for each in self.inputs if example.get(each.name)}


# -- examples ---------------------------------------------------------------------------------------------------------------------


class Fields(Form):
    """Whatever a task reads of an example, and whatever it answers."""

    what = "predicts what belongs to an example"

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        fields = {name: field for name, field in predictor.task.fields.items() if name not in predictor.task.predicted}
        self.inputs = tuple(Input(name, name.capitalize(), optional=field.optional) for name, field in fields.items())

    def predicted(self, example: dict[str, Any]) -> dict[str, Any]:
        """What the model says of an example."""
        (found,) = self.predictor.answers([example], _BATCH_TOKENS)
        if not found:
            raise ConfigError("of this text nothing is left for the model to read; type another")
        return found

    def example(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The example that was typed."""
        return {name: value for name, value in given.items() if value != ""}

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found = self.predicted(self.example(given))
        return {"view": "values", "values": {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}}


class Labels(Fields):
    """One label of a text or pair of texts, several, or a number."""

    what = "tells what label a text has"

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        second = Input("pair", "Second text", optional=True, hint="where the model was trained with pairs")
        self.inputs = (Input("text", "Text"), second)

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found = self.predicted(self.example(given))
        if self.predictor.learned["problem"] == Problem.regression.value:
            return {"view": "number", "number": f"{found['label']:.4g}"}
        chosen = found["label"] if isinstance(found["label"], list) else [found["label"]]
        chances = sorted(found["scores"].items(), key=lambda pair: -pair[1])
        return {"view": "labels", "chosen": chosen, "chances": chances}


class Relations(Labels):
    """The relation of two entities that are marked in a sentence."""

    what = "tells what relation two entities of a sentence have"

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        types = (Input(f"{each}_type", f"Type of the {each}", optional=True, hint=_TYPED) for each in (HEAD, TAIL))
        self.inputs = (Input("text", "Sentence", hint="the head as <e1>…</e1> and the tail as <e2>…</e2>"), *types)

    def example(self, given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            located({"text": given["text"]}, 0, False)
        except ConfigError:
            raise ConfigError("Sentence: mark one head as <e1>…</e1> and one tail as <e2>…</e2>") from None
        return super().example(given)

    def filled(self, example: Mapping[str, Any]) -> dict[str, str]:
        task: Any = self.predictor.task
        return super().filled(dict(example) | {"text": inline(*located(example, 0, task.last_included))})


class Nearness(Fields):
    """How near two texts are to each other."""

    what = "tells how near two texts are to each other: 1 is the same, 0 has nothing to do with it"

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        self.inputs = (Input("anchor", "First text"), Input("positive", "Second text"))

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"view": "number", "number": f"{self.predicted(self.example(given))['cosine']:.3f}"}


class Words(Fields):
    """A tag for every word."""

    what = "tags every word of a sentence"

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        self.inputs = (Input("tokens", "Sentence", 3, hint="words are parted at blanks, and punctuation from them"),)
        kinds = dict.fromkeys(kind_of(label) for label in predictor.learned["labels"] if label != OUTSIDE)
        self.colours = {kind: number % COLOURS for number, kind in enumerate(kinds)}

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        words = _WORD.findall(given["tokens"])
        tags = self.predicted({"tokens": words})["tags"]
        tagged = [(word, "" if tag == OUTSIDE else tag, self.colours.get(kind_of(tag))) for word, tag in zip(words, tags, strict=True)]
        return {"view": "words", "words": tagged}

    def filled(self, example: Mapping[str, Any]) -> dict[str, str]:
        return {"tokens": " ".join(map(str, example["tokens"]))}


class Answers(Fields):
    """Where in a text the answer to a question stands."""

    what = "finds the answer to a question in a text"

    def __init__(self, predictor: Predictor):
        super().__init__(predictor)
        self.inputs = (Input("question", "Question", 2), Input("context", "Text", 8))

    def answer(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found = self.predicted(self.example(given))
        start, text = found["answer_start"], given["context"]
        end = None if start is None else start + len(found["answer"])
        marked = {"before": text[:start], "marked": found["answer"], "after": "" if end is None else text[end:]}
        return {"view": "answer", "chances": [(one["answer"], one["score"]) for one in found["best"][:_SHOWN]], **marked}


# Colours that page.css has for tags.
COLOURS = 18


def kind_of(tag: str) -> str:
    """PER of B-PER and of I-PER."""
    return tag[2:] if tag[1:2] == "-" else tag


def form_of(run: RunDir, config: Config, device: torch.device) -> Form:
    """The form for a run's model, which is loaded. Raises ConfigError where it cannot be."""
    from trainer.generation import open_writer
    from trainer.predicting import Predictor
    from trainer.trying.texts import Chat, Continuation, Filling, Infilling, Reply

    folder = run / "model"
    if isinstance(config.task, Labelled):
        forms: Sequence[tuple[type[Labelled], type[Fields]]] = (
            (Relation, Relations),
            (Classification, Labels),
            (TokenClassification, Words),
            (QuestionAnswering, Answers),
            (Contrastive, Nearness),
            (Instruct, Chat),
            (Writing, Reply),
        )
        kind = next((form for task, form in forms if isinstance(config.task, task)), Fields)
        return kind(Predictor(folder, config, device))
    writer = open_writer(folder, config.sequence_length)
    writer.model.to(device)  # type: ignore[arg-type]
    return Filling(writer) if writer.fills else Infilling(writer) if writer.infills else Continuation(writer)
