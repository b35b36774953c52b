"""Secrets on a command line, kept out of what is logged."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config import HIDDEN, is_secret


def redacted_words(words: Sequence[str]) -> list[str]:
    """Words of a command line with the values of names that look like secrets replaced: `a.token=x`, `--api-key=x`, `--password x`."""
    shown, hide = [], False
    for word in words:
        name, equals, value = word.partition("=")
        secret = is_secret(name.lstrip("+~-"), value)
        if hide:
            shown.append(HIDDEN)
        elif secret and equals:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word)
        # A flag's value is the next word.
        hide = secret and not equals and word.startswith("--") and not hide
    return shown
