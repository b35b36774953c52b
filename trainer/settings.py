"""Choices that are settings more than behaviour: precision, device, tracking, checkpoint, survival, profile.

Each is a config group, so that a cluster or a team can keep its own as one YAML file.
"""

from __future__ import annotations

import importlib.util
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from trainer.choices import Choice, ConfigError, choice, placement, require_at_least, require_positive

if TYPE_CHECKING:
    from torch import nn

# A trace is held in memory until it is written.
_TRACED = 100


class Precision(Choice, group="precision"):
    """The arithmetic of a step; parameters, moments and reductions are fp32 in all of them."""

    # The oldest compute capability of an NVIDIA GPU that computes in it; a CPU can, in any.
    capability: ClassVar[tuple[int, int]] = (0, 0)

    @property
    def autocast(self) -> str | None:
        """Name of the torch dtype that matrix products run in, or None for fp32 throughout."""
        return None

    def prepare(self, module: nn.Module) -> None:
        """Change what a task's module computes in beyond that, before a strategy wraps it."""


@choice
class FP32(Precision):
    """fp32 throughout."""

    name: str = "fp32"


@choice
class BF16(Precision):
    """bf16 products by autocast; fp32 master weights, moments and reductions."""

    name: str = "bf16"
    # Older ones emulate it by way of fp32.
    capability: ClassVar[tuple[int, int]] = (8, 0)

    @property
    def autocast(self) -> str | None:
        return "bfloat16"


@choice
class FP8(BF16):
    """bf16, and products of transformer blocks in 8 bits, scaled by what is in them; pays for widths from about 1,600 on."""

    name: str = "fp8"
    # A CPU computes with the same rounded values, in fp32.
    capability: ClassVar[tuple[int, int]] = (8, 9)

    def prepare(self, module: nn.Module) -> None:
        from trainer.models.fp8 import use_fp8

        use_fp8(module.model)  # type: ignore[arg-type]


@choice
class FP16(Precision):
    """fp16 products by autocast, the loss scaled dynamically; fp32 master weights, moments and reductions."""

    name: str = "fp16"

    @property
    def autocast(self) -> str | None:
        return "float16"


class Device(Choice, group="device", role="placement"):
    """What the ranks run on."""

    kind = "auto"


@choice
class AutoDevice(Device):
    """Every GPU that is visible, else the CPU."""

    name: str = "auto"
    threads: int | None = placement(None, help="CPU threads of a rank; default: its share of the cores")
    peak_tflops: float | None = placement(None, help="peak of one device for MFU; default: from its name, none for a CPU")

    def check(self) -> None:
        require_positive(self, "threads", "peak_tflops", optional=True)


@choice
class CPU(AutoDevice):
    """The CPU, also where there are GPUs."""

    name: str = "cpu"
    kind = "cpu"


@choice
class CUDA(AutoDevice):
    """NVIDIA GPUs; an error where there are none."""

    name: str = "cuda"
    kind = "cuda"


class WandbMode(str, Enum):
    """How Weights & Biases is used; `auto` is online with a key and a network, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    off = "off"


class Artifact(str, Enum):
    """What of a run can be kept at W&B: `model/`, or the page report.html."""

    model = "model"
    report = "report"


class Tracking(Choice, group="tracking", role="placement"):
    """Where figures go, beside metrics.jsonl, which is always written."""

    def verify(self) -> None:
        """Raise ConfigError where a package that is asked for is missing; called before launch."""


@choice
class DefaultTracking(Tracking):
    """W&B (offline by itself without a key or a network), the progress line and the report."""

    name: str = "default"
    wandb: WandbMode = placement(WandbMode.auto, help="auto | online | offline | off")
    project: str = placement("shardloom", help="W&B project")
    entity: str | None = placement(None, help="W&B entity")
    tags: list[str] = placement(default_factory=list, help="W&B tags")
    artifacts: list[Artifact] = placement(default_factory=list, help="kept at W&B when the run is finished: model, report")
    alerts: bool = placement(False, help="W&B alerts when a step is not finite, a run halts or restarts")
    upload_seconds: float = placement(600.0, help="how long the end waits for artifacts to be uploaded, at most")
    tensorboard: bool = placement(False, help="also write TensorBoard's event files, to tensorboard/")
    samples: int = placement(0, help="texts that the model writes at each evaluation, kept in samples.jsonl")
    prompts: list[str] = placement(default_factory=list, help="what they begin with; masked models restore held-out text instead")
    ledger: bool = placement(False, help="write the row ids of every step to ledger/, for audits")

    def check(self) -> None:
        require_at_least(self, 0, "samples")
        require_positive(self, "upload_seconds")

    def verify(self) -> None:
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("tracking.tensorboard: true, but the package is not here; pip install 'shardloom[tensorboard]'")


class OnFull(str, Enum):
    """What happens when the disk has no room for a checkpoint; older ones are untouched in any case.

    `skip` goes on and tries again at the next save; `prune` first gives up what is kept for its recency alone, but the newest; a run does
    not end without its last checkpoint. `halt` ends it there.
    """

    halt = "halt"
    skip = "skip"
    prune = "prune"


class BestMode(str, Enum):
    """Which of two figures is the better one."""

    min = "min"
    max = "max"


class End(str, Enum):
    """Of which checkpoint the final figures and `model/` are."""

    last = "last"
    best = "best"


class Checkpoint(Choice, group="checkpoint", role="placement"):
    """How checkpoints are written, and which are kept."""

    def verify(self) -> None:
        """Raise ConfigError where a place that is asked for cannot be written to; called before launch."""

    def clear(self) -> None:
        """Remove what a run has saved in another place than its own directory: it starts anew."""


@choice
class DefaultCheckpoint(Checkpoint):
    """Written at every save_every steps, at a stop, and at the end."""

    name: str = "default"
    keep: int = placement(2, help="newest checkpoints that are kept")
    keep_every: int | None = placement(None, help="checkpoints of every so many steps are kept for ever")
    best: str | None = placement(None, help="a held-out figure (eval_loss, …): the checkpoint where it was best is kept too")
    mode: BestMode | None = placement(None, help="min | max: which value of checkpoint.best is the best; default: known by its name")
    end: End = placement(End.last, help="last | best: of which checkpoint the final figures and model/ are")
    on_full: OnFull = placement(OnFull.skip, help="halt | skip | prune: what a run does when the disk is full")
    path: str | None = placement(None, help="a folder or URL (s3://, gs://, …) of this run's own, to which checkpoints are copied")
    asynchronous: bool = placement(True, help="write while training goes on; takes host memory of the size of a rank's state")

    def check(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"checkpoint.keep: {self.keep}; at least 1, or a resume would have nothing to start from")
        require_positive(self, "keep_every", optional=True)
        if self.end is End.best and self.best is None:
            raise ConfigError("checkpoint.end: best without checkpoint.best; name the figure, e.g. checkpoint.best=eval_loss")

    def verify(self) -> None:
        if self.path:
            from trainer.checkpoint.remote import Remote

            Remote(self.path).verify()

    def clear(self) -> None:
        if self.path:
            from trainer.checkpoint.remote import Remote

            Remote(self.path).clear()


class NanPolicy(str, Enum):
    """What happens after a step whose gradient was not finite; its update is dropped in either case."""

    halt = "halt"
    skip = "skip"


class Survival(Choice, group="survival", role="placement"):
    """What a run does when something fails."""


@choice
class DefaultSurvival(Survival):
    """Restart dead ranks from the newest checkpoint; halt on a step that is not finite."""

    name: str = "default"
    nan: NanPolicy = placement(NanPolicy.halt, help="halt | skip")
    restarts: int = placement(3, help="restarts without a new checkpoint in between before the run gives up")
    timeout_seconds: float = placement(1800.0, help="how long a collective may wait")

    def check(self) -> None:
        require_at_least(self, 0, "restarts")
        require_positive(self, "timeout_seconds")


class Profile(Choice, group="profile", role="placement"):
    """Which steps are traced by torch's profiler."""


@choice
class DefaultProfile(Profile):
    """None, unless steps are given."""

    name: str = "default"
    steps: str | None = placement(None, help="first and last step that are traced, e.g. 10:15; into profile/ of the run directory")
    all_ranks: bool = placement(False, help="trace every rank, not rank 0 alone")
    memory: bool = placement(True, help="trace allocations too")
    stacks: bool = placement(False, help="with the Python stack of every operation; slower")

    def check(self) -> None:
        if self.steps is not None:
            first, last = self.window or (0, 0)
            if not 1 <= first <= last < first + _TRACED:
                allowed = f'FIRST:LAST, steps from 1, at most {_TRACED} of them, e.g. profile.steps=10:15 (in YAML quoted: "10:15")'
                raise ConfigError(f"profile.steps: {self.steps!r}; allowed: {allowed}")

    @property
    def window(self) -> tuple[int, int] | None:
        """First and last step, both included; None where nothing is traced."""
        first, _, last = (self.steps or "").partition(":")
        return (int(first), int(last)) if first.isdecimal() and last.isdecimal() else None
