"""A teacher beside a task's module: built, given its values, bound to the checkpoints of what learns of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.adapters.frozen import digest_of
from trainer.choices import ConfigError
from trainer.initial import Start, refuse_other_ids

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.checkpoint.boxes import Box, Shape
    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.data.corpus import Corpus

_PREFIX = "teacher."


class Beside:
    """Values of a module with a teacher: those of the teacher from where it comes from, all others from somewhere else."""

    def __init__(self, student: Read, teacher: Read):
        self.student, self.teacher = student, teacher
        self.scalars = student.scalars

    def __call__(self, name: str, kind: str, shape: Shape, box: Box) -> Tensor:
        if name.startswith(_PREFIX):
            return self.teacher(name.removeprefix(_PREFIX), kind, shape, box)
        return self.student(name, kind, shape, box)


def with_teacher(begun: Start, config: Config, corpus: Corpus, told: str | None = None) -> Start:
    """What a run begins with, its teacher beside it. told: what a checkpoint says of the teacher that it learned of.

    Raises ConfigError where the teacher is of another task, of other tokens or labels, or not the one that was learned of.
    """
    options: Any = config.teacher
    theirs = options.config(config)
    theirs.model.verify(config.objective, corpus.vocabulary, config.sequence_length)
    _refuse_other_labels(theirs, config, corpus)
    teacher: Any = config.task.module(theirs, corpus)
    values = theirs.model.weights(teacher, config.seed)
    if values.new:
        raise ConfigError(
            f"teacher.path: {options.path} has no {', '.join(values.new)}, so it was not trained for task={config.task.name}; "
            "give the model/ of a run of that task"
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in teacher.named_parameters()}
    digest = digest_of(values, shapes)
    if told is not None and told != digest:
        raise ConfigError(
            f"teacher.path: {options.path}: its values are not those that were learned of (digest {told} there, {digest} here); "
            "put them back, or start anew with resume.overwrite=true"
        )
    from trainer.models.distilling import distil

    module: Any = begun.module
    distil(module, teacher, options)
    notice = f"teacher: {options.path}, {sum(parameter.numel() for parameter in teacher.parameters()):,} parameters, none of them trained"
    return replace(begun, weights=Beside(begun.weights, values), teacher=digest, notices=(*begun.notices, notice))


def refuse_unteachable(config: Config, corpus: Corpus) -> None:
    """Raise ConfigError where there is nothing to learn of the teacher, before launch."""
    if config.teacher.teaches:
        from trainer.models.deferred import First

        refuse_other_ids(config.teacher.config(config), corpus, key="teacher.path")
        module: Any = config.task.module(config, corpus)
        with_teacher(Start(module, First(module.model, config.seed), None, ()), config, corpus)


def _refuse_other_labels(theirs: Config, config: Config, corpus: Corpus) -> None:
    ours = config.task.labels_of(corpus).get("id2label")
    if ours is None:
        return
    from transformers import AutoConfig

    model: Any = theirs.model
    known = {
        int(number): str(label)
        for number, label in (AutoConfig.from_pretrained(model.path, revision=model.revision).id2label or {}).items()
    }
    if known != ours:
        raise ConfigError(
            f"teacher.path: {model.path} has the labels {', '.join(known.values())}, and the training examples {', '.join(ours.values())}; "
            "a teacher has the same ones, in the same order: 'task.labels=[…]' sets it"
        )
