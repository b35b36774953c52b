"""Runs examples of the documents, all in one process: a JSON list of {language, body, words} in, one of {error, output} out.

TRAINER_PLUGINS=tests.inside python -m tests.examples < blocks.json
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.documents import Example, trainer_words

INSIDE = ("launcher=inside", "strategy=single", "device=cpu", "tracking.wandb=off", "micro_batch=4", "log_every=1")
_LAUNCHED = ("launcher=inside", "strategy=single")


def adjusted(words: list[str], extra: list[str]) -> list[str]:
    """Words of a command with others in place of those of the same key."""
    keys = {word.split("=")[0] for word in extra}
    return [word for word in words if word.split("=")[0] not in keys] + extra


def run_shell(example: Example, extra: list[str]) -> None:
    from trainer.cli import main

    for command in example.commands():
        words = trainer_words(command)
        if words is None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # this process's is for the answers
            continue
        composes = words[0] == "train" and not {"--help", "--cfg"} & set(words)
        # A bench starts processes of its own, whatever launcher there is.
        measures = words[0] == "bench" and words[1:2] != ["compare"]
        given = extra if composes else [word for word in extra if word not in _LAUNCHED] if measures else []
        code = main(adjusted(words, given))
        assert code == 0, f"exit code {code}: {' '.join(command)}"


def run_python(example: Example, extra: list[str]) -> None:
    class Adjust(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            if isinstance(node.func, ast.Name) and node.func.id == "compose":
                given = adjusted([ast.literal_eval(word) for word in node.args], extra)
                node.args = [ast.Constant(word) for word in given]
            return node

    tree = ast.fix_missing_locations(Adjust().visit(ast.parse(example.body)))
    exec(compile(tree, "example", "exec"), {"__name__": "example"})


def run(block: dict[str, Any]) -> dict[str, Any]:
    example = Example(Path(), 0, block["language"], block["body"], None)
    extra = adjusted([*INSIDE], block["words"])
    text, error = io.StringIO(), None
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            (run_shell if example.is_shell else run_python)(example, extra)
        except BaseException:
            error = traceback.format_exc()
    return {"error": error, "output": text.getvalue()}


if __name__ == "__main__":
    answers = [run(block) for block in json.load(sys.stdin)]
    print(json.dumps(answers))
