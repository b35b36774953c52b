"""Which runs are meant: `loss<2 strategy=ddp name=quick* optim.lr>=1e-3 age<2d`, all of which must hold.

A condition is KEY, one of `=  !=  <  <=  >  >=`, VALUE, cut at the first of these signs. A key is a column of the table, a figure
(`bits_per_byte`), or a dotted key of the configuration. `=` and `!=` compare numbers as numbers and everything else as a pattern, in
which `*` is anything and `?` one character. The others compare numbers; an age is one with s, m, h, d or w after it. A run that has
nothing under a key meets no condition on it.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from trainer.catalogue.entries import Entry
from trainer.choices import ConfigError, nearest

_SIGN = re.compile(r"!=|<=|>=|=|<|>")
_ORDER: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Condition:
    """One word of the grammar."""

    key: str
    sign: str
    value: str

    def holds(self, entry: Entry) -> bool:
        """Whether a run meets it. Raises ConfigError where an order is asked for of what is no number."""
        fact = entry.fact(self.key)
        if fact is None:
            return False
        if self.sign in _ORDER:
            if isinstance(fact, bool) or not isinstance(fact, (int, float)):
                raise ConfigError(f"{self.key}{self.sign}{self.value}: {entry.label} has {fact!r} there; only numbers have an order, use =")
            return _ORDER[self.sign](fact, self.number)
        return self._equals(fact) is (self.sign == "=")

    @property
    def number(self) -> float:
        """The value as a number. Raises ConfigError."""
        unit = _SECONDS.get(self.value[-1:]) if self.key == "age" else None
        try:
            return float(self.value[:-1]) * unit if unit else float(self.value)
        except ValueError:
            allowed = "an age such as 30m, 12h or 2d" if self.key == "age" else "a number"
            raise ConfigError(f"{self.key}{self.sign}{self.value}: {self.value!r}; allowed: {allowed}") from None

    def _equals(self, fact: Any) -> bool:
        if isinstance(fact, (int, float)) and not isinstance(fact, bool):
            try:
                return fact == float(self.value)
            except ValueError:
                pass
        text = str(fact).lower() if isinstance(fact, bool) else str(fact)
        return fnmatch.fnmatchcase(text, self.value)


def condition(word: str) -> Condition:
    """A word of the grammar. Raises ConfigError where it is none."""
    found = _SIGN.search(word)
    if found is None or not found.start() or found.end() == len(word):
        raise ConfigError(f"{word!r}: not a condition; write e.g. strategy=ddp, 'loss<2', name=quick*, 'age<2d' (quoted for the shell)")
    return Condition(word[: found.start()], found.group(), word[found.end() :])


def selected(entries: Iterable[Entry], conditions: list[Condition]) -> list[Entry]:
    """The runs that meet all conditions. Raises ConfigError for a key that no run knows, with the nearest one."""
    entries = list(entries)
    for each in conditions:
        if each.sign in _ORDER:
            _ = each.number
        if entries and all(entry.fact(each.key) is None for entry in entries):
            known = {key for entry in entries for facts in (entry.own, entry.figures, entry.config) for key in facts}
            raise ConfigError(f"{each.key}: no run here has such a key{nearest(each.key, sorted(known))}")
    return [entry for entry in entries if all(each.holds(entry) for each in conditions)]
