"""The verbs of the command: one file each, with `SUMMARY` (one line) and `run(words) -> exit code`."""

from __future__ import annotations

import ast
from pathlib import Path


def summary(name: str) -> str:
    """A verb's SUMMARY, read from its source, so that `--help` imports nothing."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SUMMARY":
            return str(ast.literal_eval(node.value))
    return ""
