"""The documents of the repository, and the examples in them.

An example is a fenced block. `<!-- run -->` in the line above it says that a test runs it; `<!-- run: tiny steps=4 -->` that these words
are added to each of its commands that compose a run, so that it ends within seconds (`tiny`: a small model on short rows).
A YAML block whose first line is a comment with a path is a file that the examples of its document find there.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("**/*.md"))]
TINY = ("model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=400", "sequence_length=32", "global_batch=8")

_EXAMPLE = re.compile(r"(?:^<!-- run(:[^\n]*)? -->\n)?^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./]+\.yaml)\n")
_SHELL = ("sh", "bash", "console")


@dataclass(frozen=True)
class Example:
    """A fenced block. run: the words to add where a test runs it, None where it is only looked at."""

    document: Path
    line: int
    language: str
    body: str
    run: tuple[str, ...] | None

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in _SHELL

    @property
    def file(self) -> str | None:
        """Where a YAML block is to be written."""
        named = _FILE.match(self.body) if self.language == "yaml" else None
        return named[1] if named else None

    def commands(self) -> list[list[str]]:
        """The words of every command of a shell block, without a prompt; of `console` blocks only the lines that have one."""
        lines = self.body.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def examples(document: Path) -> list[Example]:
    """The fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _EXAMPLE.finditer(text):
        before = text[: match.start(2)]
        run = None
        if match[0].startswith("<!-- run"):
            run = tuple(word for given in shlex.split((match[1] or "").lstrip(":")) for word in (TINY if given == "tiny" else (given,)))
        found.append(Example(document, before.count("\n") + 1, match[2], match[3], run))
    return found


def trainer_words(command: list[str]) -> list[str] | None:
    """What follows `trainer` in a command, behind another launcher too; None where it is another program's."""
    names = [word.rsplit("/", 1)[-1] for word in command]
    is_ours = names[0] == "trainer" or any(pair == ("-m", "trainer") for pair in pairwise(names))
    return command[names.index("trainer") + 1 :] if is_ours else None
