"""Journey G: a library user, five lines."""

from __future__ import annotations


def test_five_lines_train(shell, library):
    assert library.code == 0, library.err
    assert "GPT2LMHeadModel 0" in library.out and str(shell.folder / "runs" / "library") in library.out
