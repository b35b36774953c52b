"""Transformer blocks compiled one by one: all blocks of a kind share a graph, so that compiling takes as long for 48 as for one. And the
loss over a vocabulary, which is compiled as one more.

Done to a module's blocks before a strategy wraps them, on the instance: names, hooks and checkpoints stay as they are, and what an engine
does around a block (gathering its parameters, say) is not compiled. Only packed batches are compiled, in training: evaluation and
generation are what they are without.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trainer.data.cache import cache_root
from trainer.models.blocks import blocks
from trainer.models.heads import VocabularyModule
from trainer.models.linear_cross_entropy import cross_entropy_and_gradient, fusible
from trainer.models.opaque import flash_works, numbered
from trainer.models.packed import Numbered, is_watched

if TYPE_CHECKING:
    from trainer.compiling import Compile

# Graphs that may be made after the first step before a run says so.
_LATE = 4

Run = Callable[..., Any]


def compile_blocks(module: nn.Module, options: Compile, full: tuple[int, ...] = ()) -> Compiler:
    """Have the blocks of a task's module compiled, those of its teacher, and its loss. full: lengths of the rows of a full micro-batch.

    A batch of as many tokens has a graph that knows its size, and another where its documents are those rows, as no document is cut out
    of a row then; all other batches share one for any size.
    """
    # Before the compiler is imported. Ranks share it: what is in it is found by content, written aside and renamed.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))
    compiler = Compiler(options)
    # Tried before anything is traced.
    flash_works()
    taught = {id(block) for block in blocks(getattr(module, "teacher", nn.Module()))}
    for block in blocks(module):
        # A teacher is in evaluation mode while it is learned of.
        kind = compiler.kind(type(block), full, always=id(block) in taught)
        block.forward = functools.partial(_forward, block, block.forward, kind)  # type: ignore[method-assign]
    if isinstance(module, VocabularyModule):
        module.cross_entropy = functools.partial(_cross_entropy, compiler.compiled(fusible, dynamic=False))
    return compiler


@dataclass(frozen=True)
class Kind:
    """A class of blocks, compiled. steady: for micro-batches of as many tokens as full ones have; ragged: for all others."""

    steady: Run
    ragged: Run
    full: tuple[int, ...]
    always: bool

    @functools.cached_property
    def tokens(self) -> int:
        """Of a full micro-batch."""
        return sum(self.full)


def _forward(block: nn.Module, eager: Run, kind: Kind, hidden: Tensor, *inputs: Any, **named: Any) -> Any:
    lengths = named.get("doc_lens")
    # A prefix differs from block to block by its index, which would make a graph of each.
    if lengths is None or not (block.training or kind.always) or "prefix" in named or is_watched():
        return eager(hidden, *inputs, **named)
    run = kind.steady if hidden.shape[1] == kind.tokens else kind.ragged
    documents = Numbered(numbered(lengths), lengths[0] if lengths == kind.full else None)
    return run(block, hidden, *inputs, **named | {"doc_lens": documents})


def _run(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    # By the class: a graph that looked at an instance's own method would be of that instance.
    return type(block).forward(block, *inputs, **named)


def _cross_entropy(run: Run, logits: Tensor, targets: Tensor, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    import torch._dynamo

    if len(logits) < 2:
        # A size that a graph never leaves open.
        return cross_entropy_and_gradient(logits, targets, vocabulary_size)
    # How many targets a batch has differs; how large a vocabulary is, a kernel may know.
    torch._dynamo.maybe_mark_dynamic(logits, 0)
    torch._dynamo.maybe_mark_dynamic(targets, 0)
    found: tuple[Tensor, Tensor] = run(logits, targets, vocabulary_size)
    return found


@dataclass
class Compiler:
    """What is compiled, and what that took: seconds, graphs, breaks (places where a graph ends early), late graphs (after `settle`)."""

    options: Compile
    seconds: float = 0.0
    settled: int = 0
    warned: bool = False
    _kinds: dict[tuple[Any, ...], Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch._dynamo
        from torch._dynamo.callback import callback_handler

        # Asked for, an error is an error; by itself, a block that cannot be compiled runs as it is.
        torch._dynamo.config.suppress_errors = self.options.blocks is None
        # DDP would have each block cut into graphs of a bucket each; a block is small enough for its gradients to travel meanwhile.
        torch._dynamo.config.optimize_ddp = False
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)
        self._before = self._counted()

    def _begin(self, _: Any) -> None:
        self._since = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self._since

    def kind(self, cls: type[nn.Module], full: tuple[int, ...], always: bool) -> Kind:
        """The compiled forward of a class of blocks."""
        if (cls, always) not in self._kinds:
            self._kinds[cls, always] = Kind(self._forward_of(cls, "steady", False), self._forward_of(cls, "ragged", True), full, always)
        return self._kinds[cls, always]

    def _forward_of(self, cls: type[nn.Module], way: str, dynamic: bool) -> Run:
        # A code of its own: the compiler keeps graphs by code, looks through all of one, and gives up where there are too many.
        name = f"{cls.__name__}_{way}"
        return self.compiled(FunctionType(_run.__code__.replace(co_name=name, co_qualname=name), globals(), name), dynamic)

    def compiled(self, function: Run, dynamic: bool) -> Run:
        """A function, compiled when it is called first."""
        import torch

        # Other backends take no mode.
        mode = self.options.mode if self.options.mode != "default" else None
        found: Run = torch.compile(function, backend=self.options.backend, dynamic=dynamic, mode=mode)
        return found

    @staticmethod
    def _counted() -> dict[str, int]:
        from torch._dynamo.utils import counters

        return {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}

    def settle(self) -> None:
        """The first steps are done: graphs that are made from now on are late."""
        self.settled = self.figures()["graphs"]

    def figures(self) -> dict[str, Any]:
        """compile_seconds, graphs, graph_breaks, recompiles (graphs made after the first step)."""
        found: dict[str, Any] = {key: value - self._before[key] for key, value in self._counted().items()}
        late = max(0, found["graphs"] - self.settled) if self.settled else 0
        return {"compile_seconds": round(self.seconds, 2), **found, "recompiles": late}

    def complaint(self) -> str | None:
        """Said once, where graphs go on being made."""
        late = self.figures()["recompiles"]
        if self.warned or late <= _LATE:
            return None
        self.warned = True
        return f"{late} graphs were compiled after the first step; TORCH_LOGS=recompiles says why, compile.blocks=false trains without"
