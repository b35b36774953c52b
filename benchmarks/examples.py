"""Real examples with labels for measurements on fine-tuning: found in a folder of public data by pattern, parted, written as files.

Where a set has a file whose name says `train`, its other files are held out; where it has none, a quarter of its documents, articles or
meanings is, by hash, so that no text is on both sides. What a pretraining may read is the text of the training sides alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 0.25
# Documents or poems that have a label in training, and half of the meanings that have a sentence: all others are text.
_LABELLED = 64

Record = dict[str, Any]


def data_folder() -> Path:
    """TRAINER_DATA, else ../shared/data."""
    return Path(os.environ.get("TRAINER_DATA") or ROOT.parent / "shared" / "data")


@dataclass(frozen=True)
class Examples:
    """Examples of a task, parted. texts: what a pretraining may read. baselines: figure of a guess by its name, in the task's metric.

    form: the config group `data` that reads them once written; of CoNLL, records hold their lines in `lines`, of SQuAD they are articles.
    """

    train: list[Record]
    held_out: list[Record]
    texts: list[str]
    baselines: dict[str, float] = field(default_factory=dict)
    form: str = "jsonl"

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write both sides into a folder; the words of a command line that name them."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"train": folder / f"train.{_SUFFIX.get(self.form, self.form)}"}
        paths["eval"] = paths["train"].with_stem("held_out")
        for path, records in zip(paths.values(), (self.train, self.held_out), strict=True):
            path.write_text(_written(records, self.form), encoding="utf-8")
        return f"data={self.form}", *(f"data.{side}={path}" for side, path in paths.items())


_SUFFIX = {"squad": "json"}


def _written(records: list[Record], form: str) -> str:
    if form.startswith("conll"):
        return "".join("\n".join(record["lines"]) + "\n\n" for record in records)
    if form == "squad":
        return json.dumps({"version": "1.1", "data": records}, ensure_ascii=False)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def is_held_out(key: str, share: float = HELD_OUT) -> bool:
    """Whether what has this key is held out: a share of all keys, whatever else there is."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < share * 16**8


def files(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern, in order. Raises FileNotFoundError where there are none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder / pattern}: no such file")
    return found


def parted(paths: list[Path], read: Callable[[Path], Iterable[tuple[str, Record]]]) -> tuple[list[Record], list[Record]]:
    """Records for training and held out. read: a file's records, each with the key of what must not be parted."""
    named = any("train" in path.name for path in paths)
    sides: tuple[list[Record], list[Record]] = ([], [])
    for path in paths:
        for key, record in read(path):
            sides["train" not in path.name if named else is_held_out(key)].append(record)
    return sides


# -- English: tags and genres --------------------------------------------------------------------------------------------------------------


def _blocks(path: Path) -> Iterator[list[str]]:
    block: list[str] = []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def _entities_in(path: Path) -> Iterator[tuple[str, Record]]:
    for block in _blocks(path):
        rows = [line.split("\t") for line in block]
        tokens = [row[0] for row in rows]
        yield " ".join(tokens), {"lines": block, "tokens": tokens, "tags": [row[-1].strip() for row in rows]}


def _sentences_in(path: Path) -> Iterator[tuple[str, Record]]:
    """Sentences of CoNLL-U with their document; its name begins with the genre."""
    document = path.name
    for block in _blocks(path):
        comments = dict(line[1:].partition("=")[::2] for line in block if line.startswith("#"))
        about = {key.strip(): value.strip() for key, value in comments.items()}
        document = about.get("newdoc id", document)
        rows = [row for row in (line.split("\t") for line in block if not line.startswith("#")) if row[0].isdecimal()]
        tokens, tags = [row[1] for row in rows], [row[3] for row in rows]
        text = about.get("text", " ".join(tokens))
        yield document, {"lines": block, "document": document, "text": text, "tokens": tokens, "tags": tags}


def entities(data: Path) -> Examples:
    """WNUT-17's named entities. Baselines: no entity anywhere; a word's commonest tag in training."""
    from trainer.tasks import scores

    train, held_out = parted(files(data / "wnut17", "*.conll"), _entities_in)
    labels = sorted({tag for one in train for tag in one["tags"]})
    guessed = by_word(train, held_out)
    score = scores.tags([one["tags"] for one in held_out], guessed, labels).figures["f1"]
    texts = [" ".join(one["tokens"]) for one in train]
    return Examples(train, held_out, texts, {"no entity": 0.0, "commonest tag of the word": score}, "conll")


def parts_of_speech(data: Path) -> Examples:
    """EWT's part-of-speech tags. Baselines: the commonest tag; a word's commonest tag in training."""
    train, held_out = parted(files(data / "ud_ewt", "*.conllu"), _sentences_in)
    truth = [tag for one in held_out for tag in one["tags"]]
    most = Counter(tag for one in train for tag in one["tags"]).most_common(1)[0][0]
    guessed = [tag for tags in by_word(train, held_out) for tag in tags]
    right = sum(one == two for one, two in zip(truth, guessed, strict=True)) / len(truth)
    baselines = {"commonest tag": truth.count(most) / len(truth), "commonest tag of the word": right}
    return Examples(train, held_out, _by_document(train), baselines, "conllu")


def by_word(train: list[Record], held_out: list[Record]) -> list[list[str]]:
    """Each word's commonest tag in training, of unknown words the commonest of words that are seen once."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in train:
        for word, tag in zip(one["tokens"], one["tags"], strict=True):
            counts[word][tag] += 1
    once = Counter(tag for found in counts.values() if found.total() == 1 for tag in found)
    best = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    unknown = once.most_common(1)[0][0]
    return [[best.get(word, unknown) for word in one["tokens"]] for one in held_out]


def genres(data: Path) -> Examples:
    """The genre of EWT documents, after which each is named, learned from a few; all that are not held out are text. Baseline: the
    commonest genre."""
    sides = parted(files(data / "ud_ewt", "*.conllu"), _sentences_in)
    train, held_out = map(_whole, sides)
    return Examples(some(train), held_out, [one["text"] for one in train], {"commonest genre": _largest(held_out)})


def some(labelled: list[Record], count: int = _LABELLED) -> list[Record]:
    """A few of them, the same whatever their order and their labels."""

    def drawn(one: Record) -> str:
        return hashlib.sha256("\n".join(value for key, value in one.items() if key != "label").encode()).hexdigest()

    return sorted(labelled, key=drawn)[:count]


def _largest(held_out: list[Record]) -> float:
    """The share of the label that is commonest there: no constant guess is better."""
    return Counter(one["label"] for one in held_out).most_common(1)[0][1] / len(held_out)


def whole_documents(data: Path) -> Examples:
    """The genre of whole EWT documents."""
    train, held_out = parted(files(data / "ud_ewt", "*.conllu"), _sentences_in)
    return Examples(_whole(train), _whole(held_out), _by_document(train))


def _whole(sentences: list[Record]) -> list[Record]:
    found = _documents(sentences).items()
    return [{"text": " ".join(texts), "label": document.partition("-")[0]} for document, texts in found]


def _documents(sentences: list[Record]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for one in sentences:
        found[one["document"]].append(one["text"])
    return found


def _by_document(sentences: list[Record]) -> list[str]:
    return [" ".join(texts) for texts in _documents(sentences).values()]


# -- English: questions, and sentences from meanings ---------------------------------------------------------------------------------------


def questions(data: Path) -> Examples:
    """XQuAD's English questions; whole articles are held out. Records are its articles, as SQuAD's files hold them.

    Baselines, by F1: the first sentence of the text; its sentence that has the most words of the question.
    """

    def read(path: Path) -> Iterator[tuple[str, Record]]:
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
            yield article["title"], article

    train, held_out = parted(files(data / "xquad", "*.en.json"), read)
    texts = [paragraph["context"].replace("\n", " ") for article in train for paragraph in article["paragraphs"]]
    baselines = {
        "first sentence": _answered(held_out, lambda sentence, question: 0),
        "sentence with most words of the question": _answered(held_out, lambda sentence, question: len(sentence & question)),
    }
    return Examples(train, held_out, texts, baselines, "squad")


# Of a sentence that a cloze asks about: names, figures, or some words in a row.
_NAME_OR_FIGURE = re.compile(r"(?<=\s)[A-Z]\w+(?:\s[A-Z]\w+)*|\d[\d,.]*\d|\d")
_OF_FIGURES, _OF_NAMES, _OF_OTHERS = ("How many", "When", "What"), ("Who", "What", "Where", "Which"), ("What", "How")
# Share of a sentence's words that its cloze leaves out.
_LEFT_OUT = 0.25
# Words of a text that passages are made of, and of a sentence that is asked about; sentences and clozes of a passage.
_LONG, _ASKED, _TOGETHER, _CLOZES = 30, 8, 3, 2


def clozes(texts: list[str]) -> list[Record]:
    """Articles in SQuAD's form that ask about the sentences of a text: a sentence without what is asked for, some of its words left out,
    after an interrogative (noisy clozes, Lewis et al. 2019, https://arxiv.org/abs/1906.04980). The same for the same texts."""
    articles = []
    for number, text in enumerate(_passages(texts)):
        draw = random.Random(text)
        asked = []
        for start, sentence in _sentences(text):
            spans = [found.span() for found in _NAME_OR_FIGURE.finditer(sentence)] + _some_words(sentence, draw)
            if len(sentence.split()) >= _ASKED and spans:
                begin, end = draw.choice(spans)
                question = _cloze(sentence[:begin].split(), sentence[end:].split(), sentence[begin], draw)
                asked.append((question, {"text": sentence[begin:end], "answer_start": start + begin}))
        questions = [
            {"id": f"{number}-{index}", "question": question, "answers": [answer]}
            for index, (question, answer) in enumerate(draw.sample(asked, min(_CLOZES, len(asked))))
        ]
        if questions:
            articles.append({"title": str(number), "paragraphs": [{"context": text, "qas": questions}]})
    return articles


def _passages(texts: list[str]) -> Iterator[str]:
    """Some sentences of a text at a time, of texts that are long enough to have something asked about them."""
    for text in texts:
        if len(text.split()) < _LONG:
            continue
        found = [sentence for _, sentence in _sentences(text)]
        for start in range(0, len(found), _TOGETHER):
            yield " ".join(found[start : start + _TOGETHER])


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Sentences with where they start."""
    for found in re.finditer(r"\S.*?(?:[.!?](?=\s|$)|$)", text, re.DOTALL):
        yield found.start(), found.group()


def _some_words(sentence: str, draw: random.Random) -> list[tuple[int, int]]:
    """Where one to four words in a row begin and end."""
    words = [found.span() for found in re.finditer(r"\w[\w'-]*", sentence)]
    first = draw.randrange(len(words)) if words else 0
    return [(words[first][0], words[min(len(words) - 1, first + draw.randrange(4))][1])] if words else []


def _cloze(before: list[str], after: list[str], first: str, draw: random.Random) -> str:
    """A question from the words on both sides of an answer. first: character of the answer."""
    asks = _OF_FIGURES if first.isdigit() else _OF_NAMES if first.isupper() else _OF_OTHERS
    words = [word.strip(".,;:()") for word in before + after if draw.random() >= _LEFT_OUT]
    return " ".join([draw.choice(asks), *filter(None, words)]) + "?"


def _answered(articles: list[Record], fit: Callable[[set[str], set[str]], int]) -> float:
    """F1 of the sentence that fits a question best, the first of equals. fit: of the words of both."""
    from trainer.tasks.answer_scores import Answered, extracted

    found = []
    for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
        sentences = re.split(r"(?<=[.!?])\s+", paragraph["context"])
        for question in paragraph["qas"]:
            asked = set(re.findall(r"\w+", question["question"].lower()))
            best = max(sentences, key=lambda sentence: fit(set(re.findall(r"\w+", sentence.lower())), asked))
            truth = [answer["text"] for answer in question["answers"]]
            found.append(Answered(truth, best, 0.0, paragraph["context"]))
    return extracted(found).figures["f1"] / 100


def meanings(data: Path) -> Examples:
    """E2E's meanings and the sentences that say them, learned from a few pairs; all that are not held out are text. No meaning is on
    both sides."""

    def read(path: Path) -> Iterator[tuple[str, Record]]:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield row["mr"], {"source": row["mr"], "target": row["ref"]}

    train, held_out = parted(files(data / "e2e_nlg", "*.csv"), read)
    said: defaultdict[str, list[str]] = defaultdict(list)
    for one in held_out:
        said[one["source"]].append(one["target"])
    written = [{"source": source, "target": texts} for source, texts in said.items()]
    # Some sentences are said of several meanings.
    known = {one["target"] for one in held_out}
    texts = {f"{one['source']}\n{one['target']}" for one in train if one["target"] not in known}
    return Examples(some(train, 2 * _LABELLED), written, sorted(texts))


# -- Chinese -------------------------------------------------------------------------------------------------------------------------------


def poems(data: Path) -> Examples:
    """Whether a poem is a shi or a ci, learned from a few; all that are not held out are text. Baseline: the commoner kind."""

    def read(path: Path) -> Iterator[tuple[str, Record]]:
        for poem in json.loads(path.read_text(encoding="utf-8")):
            text = "".join(poem["paragraphs"])
            if text:
                yield text, {"text": text, "label": path.name.partition(".")[0].replace("poet", "shi")}

    train, held_out = parted(files(data / "zh_poetry", "ci.*.json") + files(data / "zh_poetry", "poet.*.json"), read)
    return Examples(some(train), held_out, [one["text"] for one in train], {"commoner kind": _largest(held_out)})


# -- text alone ----------------------------------------------------------------------------------------------------------------------------


def plain_text(data: Path) -> list[str]:
    """Paragraphs of WikiText-2, which nothing here is evaluated on."""
    lines = (line.strip() for path in files(data / "wikitext2", "*.txt") for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]
