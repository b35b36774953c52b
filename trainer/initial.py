"""What a run starts from: first values, a pretrained directory, or another run (`init.run`); what must fit, told before launch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.files import CheckpointError
from trainer.checkpoint.opening import open_one, shapes_in, state_in
from trainer.choices import ConfigError, nearest
from trainer.config import Config, flatten, to_dict
from trainer.data.corpus import Corpus
from trainer.data.tokenizer_files import load_tokenizer, locate
from trainer.data.tokenizers import Pretrained as PretrainedTokenizer
from trainer.distributed import alone
from trainer.models import skeleton_of
from trainer.models.pretrained import Pretrained
from trainer.run import RunDir, checkpoint_of, load_frozen

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from trainer.adapters.frozen import Base
    from trainer.checkpoint.opening import Opened
    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World


@dataclass(frozen=True)
class Start:
    """A task's module without values, what of it is frozen and adapted, and where values come from. base: of what is frozen, if anything.

    notices: lines for people. teacher: a digest of its values, if there is one.
    """

    module: nn.Module
    weights: Read
    base: Base | None
    notices: tuple[str, ...]
    teacher: str | None = None


def start(config: Config, corpus: Corpus, world: World, opened: Opened | None = None) -> Start:
    """What a run begins with, or goes on with from a checkpoint; entered by every rank.

    Raises ConfigError where what is frozen is not there any more, or has other values than the checkpoint was trained beside.
    """
    module = config.task.module(config, corpus)
    begun = start_of(module, config, world, opened.read if opened else None, opened.state.get("base") if opened else None)
    notices = (str(getattr(module, "notice", "")), *begun.notices)
    found = Start(module, begun.weights, begun.base, tuple(filter(None, notices)))
    if not config.teacher.teaches:
        return found
    from trainer.teaching import with_teacher

    return with_teacher(found, config, corpus, opened.state.get("teacher") if opened else None)


def start_of(
    module: nn.Module,
    config: Config,
    world: World,
    trained: Read | None = None,
    told: Mapping[str, Any] | None = None,
    averages: bool = False,
) -> Start:
    """The same of a module that was built, whose model is at `.model`. trained: values of all that is not frozen, if there are any yet.

    told: what came with them of the base that they were trained beside. averages: moving averages are read for what is trained.
    """
    adapts = is_partial(config)
    if trained is not None and not adapts:
        return Start(module, trained, None, ())
    first = first_weights(config, module, world)
    notice = getattr(first, "notice", "")
    if not adapts:
        return Start(module, first, None, (notice,))
    return _partial(module, first, config, trained, told, averages)


def is_partial(config: Config) -> bool:
    """Whether a part of the model is frozen."""
    return config.adapter.adapts or bool(config.optim.freeze)


def _partial(module: nn.Module, first: Read, config: Config, trained: Read | None, told: Mapping[str, Any] | None, averages: bool) -> Start:
    from trainer.adapters.frozen import Base, Composed, digest_of, freeze
    from trainer.checkpoint.boxes import whole
    from trainer.models.deferred import First

    theirs = {parameter: name for name, parameter in module.named_parameters()}
    shapes = {name: tuple(parameter.shape) for parameter, name in theirs.items()}
    model: Any = module.model
    config.adapter.adapt(model, getattr(first, "new", ()))
    freeze([(theirs.get(parameter, name), parameter) for name, parameter in module.named_parameters()], config.optim.freeze)
    named = dict(module.named_parameters())
    origin = {name: theirs[parameter] for name, parameter in named.items() if parameter in theirs}
    frozen = {name: origin[name] for name, parameter in named.items() if not parameter.requires_grad}
    base = Base(_source(config), digest_of(first, {name: shapes[name] for name in frozen.values()}), tuple(frozen))
    sizes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    notices = (getattr(first, "notice", ""), _share(config, named))
    if trained is not None:
        if told is not None:
            base.refuse_other(told, "put back what it began with, or start anew with resume.overwrite=true")
        return Start(module, Composed(first, trained, frozen, sizes, averages), base, notices)
    # What is new may be computed from what is there: of DoRA, magnitudes.
    known = {one: lambda name=name: first(name, "parameter", shapes[name], whole(shapes[name])) for one, name in theirs.items()}
    return Start(module, Composed(first, First(model, config.seed, known=known), origin, sizes), base, notices)


def _source(config: Config) -> str:
    if config.init.run:
        return f"init.run: {config.init.run}"
    return f"model.path: {path}" if (path := getattr(config.model, "path", None)) else f"seed: {config.seed}"


def counts_of(parameters: Iterable[nn.Parameter]) -> dict[str, int]:
    """How many values a model on the meta device has, and how many of them are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    return {"parameters": sum(size for size, _ in sizes), "trained_parameters": sum(size for size, trained in sizes if trained)}


def _share(config: Config, named: Mapping[str, nn.Parameter]) -> str:
    """What is trained, in a line."""
    counts = counts_of(named.values())
    everything, trained = counts["parameters"], counts["trained_parameters"]
    what = f"adapter={config.adapter.name}" if config.adapter.adapts else "optim.freeze"
    share = 100 * trained / everything
    return f"{what}: {trained:,} of {everything:,} parameters are trained ({share:.3g} %), and checkpoints hold those alone"


def first_weights(config: Config, module: nn.Module, world: World) -> Read:
    """Values before step 1, for `Strategy.place`; entered by every rank. module: the task's, without values."""
    if config.init.run:
        from trainer.models.stored import Continued

        source = config.init.run
        return Continued(open_one(checkpoint_of(source), world).read, module.model, config.seed, source)  # type: ignore[arg-type]
    return config.model.weights(module, config.seed)


def refuse_unadaptable(config: Config, corpus: Corpus) -> None:
    """Raise ConfigError where the model lacks what is to be frozen or adapted, or where what it begins with is not there."""
    if is_partial(config):
        module = bare(config, corpus)
        config.adapter.fits(module.model, config)  # type: ignore[arg-type]
        start_of(module, config, alone())


def refuse_unmatched(config: Config, corpus: Corpus) -> None:
    """Raise ConfigError where `optim` speaks of parameters that this run does not train."""
    optim = config.optim
    if not optim.groups and isinstance(optim.decay, str) and optim.layer_decay == 1.0:
        return
    module = config.task.module(config, corpus)
    if is_partial(config):
        start_of(module, config, alone())
    optim.grouped([(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad])


def bare(config: Config, corpus: Corpus) -> nn.Module:
    """A run's model on the meta device as a task's module would hold it, without what a task does."""
    from torch import nn

    holder = nn.Module()
    holder.model = skeleton_of(config, corpus)
    return holder


def refuse_unfitting(config: Config, corpus: Corpus) -> None:
    """Raise ConfigError where the weights that `init.run` names are of other tokens, or of other shapes than this run's model."""
    source = config.init.run
    if source is None:
        return
    checkpoint = checkpoint_of(source)
    theirs = RunDir(checkpoint.parent.parent)
    _refuse_part(source, checkpoint)
    _refuse_other_tokens(source, theirs, corpus)
    _refuse_other_shapes(config, checkpoint, theirs, corpus)


def _refuse_part(source: str, checkpoint: Path) -> None:
    """A part of a model is no start for a whole one."""
    if "base" in state_in(checkpoint):
        raise ConfigError(
            f"init.run: {source} has frozen parameters, and its checkpoints hold only what it trains; make a whole model of it first: "
            f"trainer export run={source.partition('@')[0]} merge=true output=FOLDER, and give model=pretrained model.path=FOLDER"
        )


def _refuse_other_tokens(source: str, theirs: RunDir, corpus: Corpus) -> None:
    """Shapes may agree while ids mean other words."""
    tokenizer = Path(theirs.placement.get("corpus", "")) / "tokenizer" / "tokenizer.json"
    ours = corpus.tokenizer_path / "tokenizer.json"
    if tokenizer.is_file() and ours.is_file() and tokenizer.read_bytes() != ours.read_bytes():
        raise ConfigError(
            f"init.run: {source} was trained with another tokenizer; use that one: tokenizer=pretrained tokenizer.path={tokenizer.parent}"
        )


def refuse_other_ids(config: Config, corpus: Corpus, key: str = "model.path") -> None:
    """Raise ConfigError (B04) where a pretrained model has a tokenizer of its own in which our tokens have other ids. key: its."""
    model, ours = config.model, config.tokenizer
    if not isinstance(model, Pretrained) or isinstance(ours, PretrainedTokenizer) and ours.path == model.path:
        return
    try:
        theirs = locate(model.path, model.revision if not Path(model.path).is_dir() else None).load().get_vocab()
    except ConfigError:
        return
    mine = load_tokenizer(corpus.tokenizer_path).get_vocab()
    differ = sorted((number, token) for token, number in mine.items() if theirs.get(token, number) != number)
    if differ:
        number, token = differ[0]
        raise ConfigError(
            f"tokenizer: {token!r} has id {number}, but {theirs[token]} in the tokenizer of {key}: {model.path}, whose ids its "
            f"embedding knows ({len(differ):,} tokens differ); take that one: tokenizer=pretrained tokenizer.path={model.path}. "
            "To learn the embedding anew, give a folder of the model without its tokenizer's files"
        )


def _refuse_other_shapes(config: Config, checkpoint: Path, theirs: RunDir, corpus: Corpus) -> None:
    model = skeleton_of(config, corpus)
    new = _of_head(model) if theirs.config_path.exists() and load_frozen(theirs.config_path).objective != config.objective else ()
    try:
        held = shapes_in(checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"init.run: {error}") from error
    for name, parameter in model.named_parameters(prefix="model"):
        ours = tuple(parameter.shape)
        if held.get(name) == ours or name not in held and name in new:
            continue
        there = f"{name} has shape {held[name]} there" if name in held else f"there is no {name} there{nearest(name, held)}"
        raise ConfigError(f"init.run: {config.init.run}: {there}, and {ours} here; {_mend(config, theirs)}")


def _of_head(model: PreTrainedModel) -> set[str]:
    """Parameters that a network may have because of its head alone: those outside of its body, and a pooler."""
    body = {name for name, _ in model.base_model.named_parameters(model.base_model_prefix) if ".pooler." not in name}
    every = {name for name, _ in model.named_parameters()}
    return {f"model.{name}" for name in every - body} if model.base_model is not model else set()


def _mend(config: Config, theirs: RunDir) -> str:
    """Which options of the model differ between the two runs."""
    if not theirs.config_path.exists():
        return "give both runs the same model"
    old, new = (_chosen(one) for one in (load_frozen(theirs.config_path), config))
    differ = [f"{key} is {old.get(key)} there and {new.get(key)} here" for key in {**new, **old} if old.get(key) != new.get(key)]
    mend = "give both runs the same model"
    if old.get("model.positions") != new.get("model.positions"):
        mend = "model.positions of both must be the longest sequence_length of either"
    return "; ".join([*differ, mend])


def _chosen(config: Config) -> dict[str, object]:
    return {"task": config.task.name, **flatten(to_dict(config)["model"], "model.")}
