"""TensorBoard: the scalars of metrics.jsonl, the samples, the settings, as event files in `tensorboard/` of the run directory.

    tensorboard --logdir runs

An attempt that goes on from a checkpoint tells where it begins, and TensorBoard drops what was logged behind that step before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.config import flatten
from trainer.tracking.figures import grouped, is_figure

FOLDER = "tensorboard"
# Of the figures of a run, these stand beside its settings in the HParams tab.
_METRICS = ("train/loss", "eval/loss")


class TensorBoard:
    """Event files of a run; a writer that fails says so once and is silent from then on.

    config: already redacted. step: where this attempt starts. say: prints a line to the person.
    """

    def __init__(self, config: dict[str, Any], run_dir: Path, step: int, say: Callable[[str], None]):
        self.say = say
        self._writer: Any = None
        with self._guard():
            self._open(config, run_dir / FOLDER, step)

    def _open(self, config: dict[str, Any], folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        goes_on = folder.is_dir() and any(folder.iterdir())
        # Steps after the checkpoint are computed again; what an earlier attempt logged of them would be seen twice.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if goes_on else None)
        settings = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in flatten(config).items()}
        experiment, begin, self._end = hparams(settings, dict.fromkeys(_METRICS))
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(begin)

    def log(self, step: int, figures: dict[str, Any]) -> None:
        """Queue the figures of a line."""
        with self._guard():
            for key, value in figures.items():
                if self._writer is not None and is_figure(value):
                    self._writer.add_scalar(grouped(key), value, step)

    def samples(self, step: int, written: list[dict[str, str]]) -> None:
        """Queue texts that the model has written."""
        with self._guard():
            for number, sample in enumerate(written):
                if self._writer is not None:
                    # The page reads Markdown, in which an indented text stays as it is.
                    text = "\n".join(f"    {line}" for line in sample["text"].splitlines())
                    self._writer.add_text(f"samples/{number}", text, step)

    def finish(self, finished: bool) -> None:
        """Write out what is queued. finished: whether the run is, too."""
        with self._guard():
            if self._writer is not None:
                if finished:
                    self._writer.file_writer.add_summary(self._end)
                self._writer.close()
        self._writer = None

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """A full disk, a missing package: training goes on without."""
        try:
            yield
        except Exception as error:
            self._writer = None
            self.say(f"TensorBoard: stopped, {type(error).__name__}: {error}; metrics.jsonl has everything")
