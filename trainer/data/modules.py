"""What a Python module says of itself, exactly: its functions with their defaults and docstrings, and what each of its tokens is."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# A line from 1 and a column from 0.
_At = tuple[int, int]
# Where a text begins, and the text; None: there is none.
Place = tuple[int, str] | None
# What follows a name's place in the tree; a name of none of these is just a name.
KINDS = ("keyword", "function", "class", "parameter", "argument", "attribute", "call", "import", "name", "number", "string", "operator")
_DEFINES = {"def": "function", "class": "class"}
_LONGEST_FUNCTION = 24
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")


class Token(NamedTuple):
    """A token. line: of the module, from 1; column: in characters, from 0. kind: one of KINDS."""

    text: str
    kind: str
    line: int
    column: int


@dataclass(frozen=True)
class Function:
    """A function or method. line: of the module. source: its first lines, not indented, without the docstring. docstring: its first
    sentence, or nothing.

    defaults: of each parameter but self and cls, where its default stands in `source` (start, text), or None where it has none.
    """

    name: str
    line: int
    source: str
    docstring: str
    defaults: dict[str, Place]


class Module:
    """A module's source. Its tree, and whatever needs it, raises SyntaxError where the interpreter cannot read it."""

    def __init__(self, name: str, source: str):
        self.name, self.source = name, source
        self.lines = source.splitlines()

    @property
    def package(self) -> str:
        """The top-level package or module that it belongs to."""
        return self.name.split(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    def functions(self) -> Iterator[Function]:
        """All functions that begin a line of their own, in the order of the tree."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found = self._function(node)
                if found is not None:
                    yield found

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function | None:
        documented, first = ast.get_docstring(node), node.body[0]
        begin, end = first.lineno, first.end_lineno or first.lineno
        if begin == node.lineno:
            return None
        left_out = range(begin, end + 1) if documented else range(0)
        lines = [self.lines[number - 1] for number in range(node.lineno, (node.end_lineno or 0) + 1) if number not in left_out]
        margin = node.col_offset
        source = "\n".join(line[margin:] if not line[:margin].strip() else line for line in lines[:_LONGEST_FUNCTION])
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [*[None] * (len(every) - len(arguments.defaults)), *arguments.defaults, *arguments.kw_defaults]
        places: dict[str, Place] = {}
        for parameter, default in zip([*every, *arguments.kwonlyargs], defaults, strict=True):
            if parameter.arg not in ("self", "cls"):
                places[parameter.arg] = None if default is None else self._place(default, node, source)
        return Function(node.name, node.lineno, source, _sentence(documented or ""), places)

    def _place(self, default: ast.expr, node: ast.FunctionDef | ast.AsyncFunctionDef, source: str) -> tuple[int, str]:
        """Where a default stands in a function's source: in its signature, which comes before all that is left out."""
        line = self.lines[default.lineno - 1]
        # One of several lines is given with its first; columns of the tree are bytes.
        stop = default.end_col_offset if default.end_lineno == default.lineno else None
        text = line.encode()[default.col_offset : stop].decode()
        before = source.split("\n")[: default.lineno - node.lineno]
        column = len(line.encode()[: default.col_offset].decode()) - node.col_offset
        return sum(len(line) + 1 for line in before) + column, text

    @cached_property
    def statements(self) -> list[list[Token]]:
        """The tokens of each logical line, without comments; lines that are not ASCII are left out."""
        found: list[list[Token]] = []
        current: list[tokenize.TokenInfo] = []
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type == tokenize.NEWLINE:
                if all(one.line.isascii() for one in current):
                    found.append([*self._told(current)])
                current = []
            elif token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP) or "STRING" in tokenize.tok_name[token.type]:
                current.append(token)
        return found

    def _told(self, statement: list[tokenize.TokenInfo]) -> Iterator[Token]:
        imports = statement[0].string in ("import", "from") if statement else False
        before = ""
        for token in statement:
            if token.type == tokenize.NUMBER:
                kind = "number"
            elif token.type == tokenize.OP:
                kind = "operator"
            elif token.type != tokenize.NAME:
                kind = "string"
            elif keyword.iskeyword(token.string):
                kind = "keyword"
            elif imports:
                kind = "import"
            else:
                kind = _DEFINES.get(before) or self._roles.get(token.start, "name")
            before = token.string
            yield Token(token.string, kind, *token.start)

    @cached_property
    def _roles(self) -> dict[_At, str]:
        """What names are, by the place of each; of a line that is not ASCII places are wrong, since the tree counts bytes."""
        found: dict[_At, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.arg):
                found[node.lineno, node.col_offset] = "parameter"
            elif isinstance(node, ast.keyword) and node.arg:
                found[node.lineno, node.col_offset] = "argument"
            elif isinstance(node, ast.Attribute):
                found.setdefault(_end_of(node), "attribute")
            elif isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute):
                    found[_end_of(node.func)] = "call"
                elif isinstance(node.func, ast.Name):
                    found[node.func.lineno, node.func.col_offset] = "call"
        return found


def _end_of(node: ast.Attribute) -> _At:
    """Where the name after the dot stands."""
    return node.end_lineno or 0, (node.end_col_offset or 0) - len(node.attr)


def _sentence(text: str) -> str:
    """The first sentence of a text, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return _SENTENCE.split(paragraph, maxsplit=1)[0]
