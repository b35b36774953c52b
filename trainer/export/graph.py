"""An exported model as a graph in ONNX, for programs that run without PyTorch: compared with it on held-out examples before it is kept.

    model.onnx                                input_ids, attention_mask (, token_type_ids) → logits; of embeddings, → sentence_embedding
    encoder_model.onnx  decoder_model.onnx    of encoder–decoder models

Names of files, inputs and outputs are those of Optimum, so that its classes load them. Batch and length are open.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.choices import ConfigError
from trainer.models.embedding import embedded
from trainer.models.head import without_cache
from trainer.sampling import held_out
from trainer.tasks.contrastive import Contrastive
from trainer.tasks.labelled import Labelled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from trainer.config import Config
    from trainer.data.corpus import Corpus

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Differences of values beyond 1 are relative to them.
TOLERANCE = 1e-4
# Held-out examples that are compared.
_EXAMPLES = 12

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Graph:
    """A graph that was written. difference: the largest from PyTorch, on so many held-out examples."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float
    examples: int

    @property
    def found(self) -> str:
        """What the comparison came to, for people."""
        return f"within {self.difference:.1e} of PyTorch on {self.examples} held-out examples"


def require_packages() -> None:
    """Raise ConfigError where the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"onnx: true, but {missing[0]} is not here; pip install 'shardloom[onnx]'")


def write_graphs(folder: Path, config: Config, corpus: Corpus) -> list[Graph]:
    """Write the graphs of the model in a folder beside it.

    Raises ConfigError where PyTorch cannot trace the model, and naming the difference where the graph computes something else.
    """
    from trainer.export import load_exported
    from trainer.models.front import prefix_length, virtual_tokens

    model: Any = load_exported(folder, bare=True).float().eval()
    if virtual_tokens(model) or prefix_length(model):
        raise ConfigError(f"onnx: true, but adapter={config.adapter.name} puts something in front of every document, which no graph has")
    batches = examples_of(model, config, corpus)
    task = config.task
    whole = Embedding(model, task.pooling.value) if isinstance(task, Contrastive) else Whole(model)
    parts: list[tuple[str, nn.Module, list[Named]]] = [("model.onnx", whole, batches)]
    if model.config.is_encoder_decoder:
        encoder, decoder = Encoder(model), Decoder(model)
        parts = [
            ("encoder_model.onnx", encoder, batches),
            ("decoder_model.onnx", decoder, [to_decode(encoder, batch) for batch in batches]),
        ]
    wanted = [_computed(module, given) for _, module, given in parts]
    # Written out in products and sums, every family can be traced; the attention that the model is loaded with is what it must equal.
    model.set_attn_implementation("eager")
    found = []
    for (file, module, given), expected in zip(parts, wanted, strict=True):
        _write(folder / file, module, given[-1], list(expected[0]))
        difference = compare(folder / file, given, expected)
        found.append(Graph(file, tuple(given[0]), tuple(expected[0]), difference, len(batches[-1]["input_ids"])))
    return found


# -- what is traced ---------------------------------------------------------------------------------------------------------------


class Whole(nn.Module):
    """A model as a function of tensors, to its logits."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.named = without_cache(type(model).forward)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Named:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        found = self.model(**{name: value for name, value in given.items() if value is not None}, **self.named)
        return {name: value for name, value in found.items() if name.endswith("logits")}


class Embedding(nn.Module):
    """A body as a function of tensors, to the states of its tokens and the embedding of each text, of length 1."""

    def __init__(self, model: PreTrainedModel, pooling: str):
        super().__init__()
        self.model, self.pooling = model, pooling
        self.named = without_cache(type(model).forward)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Named:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **types, **self.named).last_hidden_state
        # sentence-transformers and Optimum read the first, and pool it themselves.
        return {"last_hidden_state": hidden, "sentence_embedding": embedded(hidden, attention_mask, self.pooling)}


class Encoder(nn.Module):
    """The half of an encoder–decoder model that reads."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.encoder = model.get_encoder()
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Named:
        return {"last_hidden_state": self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state}


class Decoder(nn.Module):
    """The half that writes. input_ids: what it has written so far."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, input_ids: Tensor, encoder_attention_mask: Tensor, encoder_hidden_states: Tensor) -> Named:
        from transformers.modeling_outputs import BaseModelOutput

        read = BaseModelOutput(last_hidden_state=encoder_hidden_states)  # type: ignore[arg-type]
        found = self.model(encoder_outputs=read, attention_mask=encoder_attention_mask, decoder_input_ids=input_ids, use_cache=False)
        return {"logits": found.logits}


# -- what is compared -------------------------------------------------------------------------------------------------------------


def examples_of(model: PreTrainedModel, config: Config, corpus: Corpus) -> list[Named]:
    """Batches of held-out examples as the model reads them: the shortest alone, the longest alone, and, padded, some of any length."""
    own, task = next(part for part in corpus.named().values() if not part.members), config.task
    if isinstance(task, Labelled):
        split = own.split("eval")
        numbers = range(0, len(split.rows), max(1, len(split.rows) // _EXAMPLES))
        rows = [task.row(split, number) for number in numbers[:_EXAMPLES]]
        examples = [text for row in rows for text in _texts(row, task)]
    else:
        stretches = held_out(corpus, min(config.sequence_length, len(own.tokens("eval"))), _EXAMPLES)
        cut = [ids[: max(1, len(ids) * (number + 1) // len(stretches))] for number, ids in enumerate(stretches)]
        # Texts of two parts, for models that tell parts apart.
        examples = [(ids, [place * 2 // len(ids) for place in range(len(ids))]) for ids in cut]
    examples.sort(key=lambda example: len(example[0]))
    # The tracing takes a batch of one, or a length of one, for a constant: so the last batch is several, and no shorter than two.
    several = examples if len(examples) > 1 else examples * 2
    return [_padded(model, batch) for batch in (examples[:1], examples[-1:], several)]


def _texts(row: Mapping[str, NDArray[np.int64]], task: Labelled) -> Iterator[tuple[list[int], list[int]]]:
    """Each text of a row that is read by itself: its ids, and which of its parts each is of, where it has several."""
    types = row.get("token_type_ids", row["input_ids"][:0]).tolist()
    ids = iter(row["input_ids"].tolist())
    yield from ((list(islice(ids, length)), types) for length in task.lengths(row))


def _padded(model: PreTrainedModel, examples: Sequence[tuple[list[int], list[int]]]) -> Named:
    longest = max(2, *(len(ids) for ids, _ in examples)) if len(examples) > 1 else len(examples[0][0])
    pad = model.config.pad_token_id if isinstance(model.config.pad_token_id, int) else 0
    known = inspect.signature(type(model).forward).parameters
    found = {"input_ids": torch.full((len(examples), longest), pad)}
    if "attention_mask" in known:
        found["attention_mask"] = torch.zeros_like(found["input_ids"])
    if "token_type_ids" in known and getattr(model.config, "type_vocab_size", 0) > 1:
        found["token_type_ids"] = torch.zeros_like(found["input_ids"])
    for number, (ids, types) in enumerate(examples):
        values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types or [0] * len(ids)}
        for name, tensor in found.items():
            tensor[number, : len(ids)] = torch.tensor(values[name])
    return found


def to_decode(encoder: Encoder, batch: Named) -> Named:
    """Inputs of the decoder: a text of the batch as if it had been written, and what the encoder has read."""
    with torch.no_grad():
        read = encoder(**batch)["last_hidden_state"]
    written = batch["input_ids"][:, : max(2, batch["input_ids"].shape[1] // 2)]
    return {"input_ids": written, "encoder_attention_mask": batch["attention_mask"], "encoder_hidden_states": read}


def _computed(module: nn.Module, batches: Sequence[Named]) -> list[Named]:
    with torch.no_grad():
        return [module(**batch) for batch in batches]


def compare(file: Path, batches: Sequence[Named], expected: Sequence[Named]) -> float:
    """The largest difference between a graph and what PyTorch computes of the same inputs, where they are no padding.

    Raises ConfigError where it is more than TOLERANCE.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = list(expected[0])
    # Outputs for each token are as long as the input in every batch; what stands there for padding is read by nobody.
    pairs = [*zip(batches, expected, strict=True)]
    by_token = [name for name in names if all(wanted[name].shape[:2] == given["input_ids"].shape for given, wanted in pairs)]
    largest = 0.0
    for given, wanted in pairs:
        outputs = session.run(names, {name: value.numpy() for name, value in given.items()})
        for name, output in zip(names, map(torch.from_numpy, outputs), strict=True):
            apart = (output - wanted[name]).abs() / wanted[name].abs().clamp(min=1)
            if name in by_token and "attention_mask" in given:
                apart = apart[given["attention_mask"].bool()]
            largest = max(largest, float(apart.nan_to_num(float("inf")).max()))
    if largest > TOLERANCE:
        raise ConfigError(
            f"onnx: true, but {file.name} differs from PyTorch by {largest:.2g} (allowed: {TOLERANCE}); nothing was written. "
            "Export without it"
        )
    return largest


# -- writing ----------------------------------------------------------------------------------------------------------------------


def _write(file: Path, module: nn.Module, example: Named, outputs: list[str]) -> None:
    """Trace a module and write its graph; weights beyond 2 GB lie beside it."""
    axes = {name: {0: "batch", 1: "encoder_length" if name.startswith("encoder_") else "length"} for name in example}
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                module, (), kwargs=example, dynamo=True, dynamic_shapes=axes, input_names=list(example), output_names=outputs, verbose=False
            )
        except Exception as error:  # whatever tracing, decomposing and translating raise
            said = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
            name = type(getattr(module, "model", module)).__name__
            raise ConfigError(f"onnx: true, but PyTorch cannot trace {name}: {said[0] if said else type(error).__name__}") from error
        program.save(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
