"""Building a model without its values, and giving it them tensor by tensor.

A model is built on the meta device, and the operations that would have made its tensors are written down as they happen. A parameter's
first values are then a pure function of (seed, name): those operations alone, run on the CPU, their draws under a seed of the name. So
every strategy at any number of processes starts from the same bits, and no rank ever holds more than its share and the tensor in hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from trainer.checkpoint.boxes import Box, Shape, whole
from trainer.streams import mix

if TYPE_CHECKING:
    from trainer.checkpoint.pieces import Read

M = TypeVar("M", bound=nn.Module)
_CPU = torch.device("cpu")
# What leaves nothing of the values that were there, where it is done to the whole of a tensor.
_OVERWRITING = {"aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_"}


def deferred(build: Callable[[], M]) -> M:
    """The model that `build` makes, its parameters on the meta device, its buffers real, its ties kept; `First` knows its first values."""
    from transformers import PreTrainedModel
    from transformers.initialization import meta_device_safe_creation_ops, no_tie_weights

    recording = Recording()
    with recording:
        # The order of transformers' own construction: modules, then `_init_weights` of each, and ties at the end, so that an output
        # layer's draw does not overwrite the embedding that it is tied to.
        with no_tie_weights(), torch.device("meta"), meta_device_safe_creation_ops():
            model = build()
        if isinstance(model, PreTrainedModel):
            with recording.whole_draws():
                model.initialize_weights()
            model.tie_weights()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module._buffers[name] = recording.replay(Place.of(buffer), mix("buffer"))
    model.recording = recording  # type: ignore[assignment]
    return model


@dataclass(frozen=True)
class Place:
    """Where a meta tensor lay when it was recorded; a later `tensor.data = …` may have moved it."""

    storage: torch.UntypedStorage
    offset: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def key(self) -> int:
        # The storage is kept here, so no other one can have the same address.
        return int(self.storage._cdata)

    @staticmethod
    def of(tensor: Tensor) -> Place:
        return Place(tensor.untyped_storage(), int(tensor.storage_offset()), tensor.size(), tensor.stride(), tensor.dtype)


@dataclass(frozen=True)
class Operation:
    """A recorded operation. outputs: places of what it returns. made: storages that it creates; changed: one that it writes to, which
    it may overwrite as a whole; read: all others that it needs."""

    call: Callable[..., Any]
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    outputs: list[Place]
    made: set[int]
    changed: int | None
    overwrites: bool
    read: set[int]


class Recording(TorchDispatchMode):
    """Writes down what creates or changes meta tensors. Views need no record: a replay finds them in the storage that they look at."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Recording:
        # A copy of a model has the same past.
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, named = tree_map(_placed, (tuple(args), kwargs or {}))
        outputs = [leaf for leaf in tree_iter(tree_map(_placed, result)) if isinstance(leaf, Place)]
        read = {leaf.key for leaf in tree_iter((inputs, named)) if isinstance(leaf, Place)}
        made = {place.key for place in outputs} - read
        target = inputs[0] if func._schema.is_mutable and inputs and isinstance(inputs[0], Place) else None
        if made or target is not None:
            covers = target is not None and args[0].nbytes == target.storage.nbytes()
            overwrites = covers and func._schema.name in _OVERWRITING
            changed = None if target is None else target.key
            self.operations.append(Operation(func, inputs, named, outputs, made, changed, overwrites, read - {changed}))
        return result

    @contextmanager
    def whole_draws(self) -> Iterator[None]:
        """Inside, what initializes a tensor is recorded as one operation: some draw again until they like what they see."""
        from transformers.initialization import TORCH_INIT_FUNCTIONS as functions

        def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
                if not tensor.is_meta:
                    return function(tensor, *args, **named)  # type: ignore[no-any-return]
                place = Place.of(tensor)
                covers = tensor.nbytes == place.storage.nbytes()
                self.operations.append(Operation(function, (place, *args), named, [place], set(), place.key, covers, set()))
                return tensor

            return call

        own: dict[str, Any] = dict(functions)
        functions.update({name: recorded(function) for name, function in own.items()})
        try:
            yield
        finally:
            functions.update(own)

    def leading_to(self, key: int, known: Collection[int] = ()) -> list[Operation]:
        """What has to be run for the values in a storage, in order; nothing whose outcome is overwritten later, or is known."""
        needed, settled = {key}, set(known)
        found = []
        for operation in reversed(self.operations):
            changes = operation.changed in needed and operation.changed not in settled
            if not changes and not operation.made & (needed - set(known)):
                continue
            found.append(operation)
            needed |= operation.read
            if operation.overwrites and operation.changed is not None:
                settled.add(operation.changed)
        return found[::-1]

    def replay(self, target: Place, seed: int, known: Mapping[int, Callable[[], Tensor]] | None = None) -> Tensor:
        """The values of a recorded tensor, on the CPU; draws come from a generator in the state that the seed gives it.

        known: values of storages that have come to be others than those that were recorded.
        """
        storages: dict[int, torch.UntypedStorage] = {}
        known = known or {}

        def real(leaf: Any) -> Any:
            if isinstance(leaf, Place):
                if leaf.key in known and leaf.key not in storages:
                    storages[leaf.key] = known[leaf.key]().contiguous().untyped_storage()
                empty = torch.empty(0, dtype=leaf.dtype)
                return empty.set_(storages[leaf.key], leaf.offset, leaf.size, leaf.stride)  # type: ignore[call-overload]
            return _CPU if isinstance(leaf, torch.device) and leaf.type == "meta" else leaf

        with torch.no_grad(), seeded(seed):
            for operation in self.leading_to(target.key, known):
                inputs, named = tree_map(real, (operation.inputs, operation.named))
                result = operation.call(*inputs, **named)
                values = [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
                for place, tensor in zip(operation.outputs, values, strict=True):
                    storages.setdefault(place.key, tensor.untyped_storage())
            found: Tensor = real(target)
        return found


def _placed(leaf: Any) -> Any:
    return Place.of(leaf) if isinstance(leaf, Tensor) and leaf.is_meta else leaf


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws inside are those of a seed; the generator outside goes on as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed >> 1)
        yield


class First:
    """First values of a deferred model's parameters, as `Read` gives them: functions of (seed, name) alone. prefix: of names in a run.

    known: of parameters that have other values, from which first values of some are computed.
    """

    def __init__(
        self, model: nn.Module, seed: int, prefix: str = "model", known: Mapping[nn.Parameter, Callable[[], Tensor]] | None = None
    ):
        self.scalars: dict[str, int] = {}
        self.recording: Recording = model.recording  # type: ignore[assignment]
        self.seed = seed
        # Names may come to mean other tensors when a strategy cuts the model; those that were recorded stay.
        self.recorded = {name: Place.of(parameter) for name, parameter in model.named_parameters(prefix)}
        self.known = {Place.of(parameter).key: values for parameter, values in (known or {}).items()}
        self._last: tuple[str, Tensor] | None = None

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self.recording.replay(self.recorded[name], mix(self.seed, "init", name), self.known)
        values = self._last[1][box.slices()]
        if box == whole(shape):
            self._last = None  # read whole, it will not be asked for again
        return values


@torch.no_grad()
def materialise(module: M, weights: Read, device: torch.device, prefix: str = "") -> M:
    """Give a module that was built on meta whole parameters on a device, read one after the other; ties stay. Returns the module."""
    made = {}
    for name, parameter in module.named_parameters(prefix):
        shape = tuple(parameter.shape)
        values = torch.empty(shape, dtype=parameter.dtype, device=device)
        values.copy_(weights(name, "parameter", shape, whole(shape)))
        made[parameter] = nn.Parameter(values, parameter.requires_grad)
    exchange_parameters(module, made)
    move_buffers(module, device)
    return module


def exchange_parameters(module: nn.Module, made: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Put others in the places of parameters, in every module that has them (C12)."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = made[parameter]


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Buffers are small, and real from the start."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(device)


def real_copy(model: M, seed: int = 0) -> M:
    """A whole model on the CPU beside a deferred one, with the first values of a seed."""
    return materialise(copy.deepcopy(model), First(model, seed), _CPU, prefix="model")
