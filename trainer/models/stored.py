"""A pretrained model's weights, read from its safetensors files box by box."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from trainer.checkpoint.boxes import Box, Shape, intersection, whole
from trainer.checkpoint.files import CheckpointError, plain
from trainer.choices import ConfigError
from trainer.models.deferred import First
from trainer.parameter_groups import renumbered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainer.checkpoint.reading import Reader

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Sliced(Protocol):
    """A tensor in a file: its shape is known, and a part of it is read by indexing."""

    def get_shape(self) -> list[int]: ...
    def __getitem__(self, index: Any) -> Tensor: ...


class Stored:
    """A pretrained model's parameters as `Read` gives them. notice: a line for people, empty where there is nothing to tell.

    stored: by the names of the model, without a task's prefix. What is not there is new, such as a head, and has its first values; so have
    rows beyond those stored, for tokens that were added. new: names of what is not there.
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, Sliced], seed: int, rows: int, path: str):
        self.scalars: dict[str, int] = {}
        self.path, self.rows = path, rows
        self.first = First(model, seed)
        self.stored: dict[str, Sliced] = {}
        places: dict[int, str] = {}
        for name, parameter in model.named_parameters("model", remove_duplicate=False):
            # Of what is tied, files hold one, under either name, or all of them.
            own = places.setdefault(id(parameter), name)
            found = stored.get(name.removeprefix("model."))
            if found is not None and own in self.stored and not torch.equal(found[...], self.stored[own][...]):
                raise ConfigError(
                    f"model.path: {path}: its configuration ties {name} to {own}, but its files hold two different tensors; "
                    "set tie_word_embeddings: false in its config.json"
                )
            if found is not None:
                self.stored.setdefault(own, found)
        self.new = [name for name in places.values() if name not in self.stored]
        self.notice = f"model.path: {path}: not in its files, so with first values: {', '.join(self.new)}" if self.new else ""

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        if name not in self.stored:
            return self.first(name, kind, shape, box)
        stored = self.stored[name]
        held = tuple(stored.get_shape())
        if held == tuple(shape):
            return _part(stored, box)
        if not shape or held[1:] != tuple(shape[1:]) or not self.rows == held[0] < shape[0]:
            raise ConfigError(f"model.path: {self.path}: {name} has shape {held} in its files, and {tuple(shape)} by its config.json")
        values = self.first(name, kind, shape, box).clone()
        old = intersection(box, whole(held))
        if old is not None:
            values[old.slices(box.offset)] = _part(stored, old)
        return values


class Continued:
    """Another run's parameters as `Read` gives them; what it has no place for, such as a head, is new and has first values.

    notice, new: as Stored has them. source: what the user calls that run.
    """

    def __init__(self, read: Reader, model: PreTrainedModel, seed: int, source: str):
        self.scalars, self.read, self.first = read.scalars, read, First(model, seed)
        self.new = [name for name, _ in model.named_parameters("model") if (name, "parameter") not in read.shapes]
        self.notice = f"init.run: {source}: not in its checkpoint, so with first values: {', '.join(self.new)}" if self.new else ""

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        return (self.first if name in self.new else self.read)(name, kind, shape, box)


def _part(stored: Sliced, box: Box) -> Tensor:
    # A scalar has no slices.
    return (stored[box.slices()] if box.lengths else stored[...]).float()


class Held:
    """A tensor in memory, read as one in a file is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor[index]


def sliced(model: PreTrainedModel, files: list[Path], kept: Sequence[int] | None = None) -> dict[str, Sliced] | None:
    """Tensors of safetensors files under the names that this version of transformers gives them; nothing is read yet.

    kept: the blocks of the files that are those of the model; default: all.
    None where it makes parameters by more than renaming, e.g. merges experts: those exist only once it has loaded the whole.
    """
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    names, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Sliced] = {}
    for file in files:
        opened = safe_open(file, framework="pt", device="cpu")
        for there in opened.keys():  # noqa: SIM118 (not a mapping)
            key = there if kept is None else renumbered(there, kept)
            if key is None:
                continue
            name, pattern = rename_source_key(key, renamings, converters, prefix, names)
            if name not in names and key in names:
                name, pattern = rename_source_key(key, [], [], prefix, names)
            if name not in names:
                # Beside some heads a body has another name: of a Llama `transformer` where it answers questions, else `model`.
                beside = f"{prefix}.{name.partition('.')[2]}"
                name = beside if beside in names else name
            if pattern is not None:
                return None
            found[name] = opened.get_slice(there)
    return found


def files_in(folder: Path) -> list[Path] | None:
    """The safetensors files of a local model, None where it has none. Raises CheckpointError where its index leads elsewhere (S02)."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    return list(_indexed(folder)) if (folder / INDEX).exists() else None


def _indexed(folder: Path) -> Iterator[Path]:
    index = json.loads((folder / INDEX).read_text())
    for name in sorted(set(index["weight_map"].values())):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX} names the file {name!r}; allowed: names of .safetensors files in the folder itself")
        path = folder / name
        # A hub's cache keeps its files as links into its own folder of contents, and nothing else is followed.
        blobs = folder.resolve().parents[1] / "blobs" if len(folder.resolve().parents) > 1 else folder
        yield path if path.is_symlink() and path.resolve().parent == blobs and path.is_file() else plain(path)
