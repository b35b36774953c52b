"""From whom a model learns beside its data: another model of the same task, whose outputs are targets too (distillation)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.choices import Choice, ConfigError, choice, identity, require_at_least, require_positive, require_share

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.tasks import Task

# Names of the terms that a teacher adds to an objective.
SOFT, HIDDEN, RELATIONS = "_soft", "hidden", "relations"


class Teacher(Choice, group="teacher"):
    """Another model whose outputs are targets, or none."""

    @property
    def teaches(self) -> bool:
        """Whether there is one."""
        return False

    def weights(self, task: Task) -> dict[str, float]:
        """term → weight in the objective: those of the task, and what the teacher adds."""
        return task.weights

    def counted(self, targets: Mapping[str, int], task: Task, tokens: int) -> dict[str, int]:
        """term → number of targets, for every term of `weights`. targets: of the task's own terms; tokens: of the global batch."""
        return dict(targets)

    def config(self, config: Config) -> Config:
        """The configuration that the teacher's own module is built by."""
        raise NotImplementedError


@choice
class NoTeacher(Teacher):
    """The data alone."""

    name: str = "none"


@choice
class PretrainedTeacher(Teacher):
    """A model in a directory or on a hub, of the same task and tokens: soft targets, and if asked for its hidden states and attention.

    https://arxiv.org/abs/1503.02531, https://arxiv.org/abs/1910.01108 (DistilBERT), https://arxiv.org/abs/2012.15828 (MiniLMv2).
    """

    name: str = "pretrained"
    path: str = identity("", help="directory or hub id of the teacher, e.g. the model/ of a run")
    revision: str | None = identity(None, help="commit of a hub repository")
    weight: float = identity(0.5, help="share of the objective that its soft targets have; the data have the rest")
    temperature: float = identity(
        2.0, help="what logits are divided by before they are compared; soft targets are softer where it is higher"
    )
    hidden: float = identity(
        0.0, help="weight of the cosine distance to its hidden states, after each block of the student; widths must agree"
    )
    attention: float = identity(
        0.0, help="weight of the distance of relations in the last block's attention (MiniLMv2); any widths and heads"
    )
    relation_heads: int = identity(12, help="heads into which queries, keys and values are divided for their relations")

    def check(self) -> None:
        require_positive(self, "temperature", "relation_heads")
        require_share(self, "weight", whole=True)
        require_at_least(self, 0, "hidden", "attention")
        if not self.path:
            raise ConfigError("teacher.path: missing; teacher=pretrained needs a directory or a hub id, e.g. teacher.path=runs/big/model")
        if not (self.weight or self.hidden or self.attention):
            raise ConfigError(
                "teacher.weight: 0, and teacher.hidden and teacher.attention are 0 too: nothing is learned of it; teacher=none"
            )

    @property
    def teaches(self) -> bool:
        return True

    def weights(self, task: Task) -> dict[str, float]:
        hard = {term: weight * (1.0 - self.weight) for term, weight in task.weights.items()}
        soft = {f"{term}{SOFT}": weight * self.weight for term, weight in task.terms.items() if self.weight}
        more = {HIDDEN: self.hidden, RELATIONS: self.attention}
        return hard | soft | {term: weight for term, weight in more.items() if weight}

    def counted(self, targets: Mapping[str, int], task: Task, tokens: int) -> dict[str, int]:
        return {**targets, **{f"{term}{SOFT}": targets[term] for term in task.terms}, HIDDEN: tokens, RELATIONS: tokens}

    def config(self, config: Config) -> Config:
        from trainer.adapters import NoAdapter
        from trainer.models.pretrained import Pretrained

        model: Any = Pretrained(path=self.path, revision=self.revision)
        return replace(config, model=model, adapter=NoAdapter(), teacher=NoTeacher())
