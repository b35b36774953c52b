"""What a run starts from: first values, a pretrained directory, or another run (`init.run`); what must fit, told before launch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint.files import CheckpointError
from trainer.checkpoint.opening import open_one, shapes_in
from trainer.choices import ConfigError, nearest
from trainer.config import Config, flatten, to_dict
from trainer.data.corpus import Corpus
from trainer.data.tokenizer_files import load_tokenizer, locate
from trainer.data.tokenizers import Pretrained as PretrainedTokenizer
from trainer.models import skeleton_of
from trainer.models.pretrained import Pretrained
from trainer.run import RunDir, checkpoint_of, load_frozen

if TYPE_CHECKING:
    from torch import nn

    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World


def first_weights(config: Config, module: nn.Module, world: World) -> Read:
    """Values before step 1, for `Strategy.place`; entered by every rank. module: the task's, without values."""
    if config.init.run:
        return open_one(checkpoint_of(config.init.run), world).read
    return config.model.weights(module, config.seed)


def refuse_unfitting(config: Config, corpus: Corpus) -> None:
    """Raise ConfigError where the weights that `init.run` names are of other tokens, or of other shapes than this run's model."""
    source = config.init.run
    if source is None:
        return
    checkpoint = checkpoint_of(source)
    theirs = RunDir(checkpoint.parent.parent)
    _refuse_other_tokens(source, theirs, corpus)
    _refuse_other_shapes(config, checkpoint, theirs, corpus)


def _refuse_other_tokens(source: str, theirs: RunDir, corpus: Corpus) -> None:
    """Shapes may agree while ids mean other words."""
    tokenizer = Path(theirs.placement.get("corpus", "")) / "tokenizer" / "tokenizer.json"
    ours = corpus.tokenizer_path / "tokenizer.json"
    if tokenizer.is_file() and ours.is_file() and tokenizer.read_bytes() != ours.read_bytes():
        raise ConfigError(
            f"init.run: {source} was trained with another tokenizer; use that one: tokenizer=pretrained tokenizer.path={tokenizer.parent}"
        )


def refuse_other_ids(config: Config, corpus: Corpus) -> None:
    """Raise ConfigError (B04) where a pretrained model has a tokenizer of its own in which our tokens have other ids."""
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
            f"tokenizer: {token!r} has id {number}, but {theirs[token]} in the tokenizer of model.path: {model.path}, whose ids its "
            f"embedding knows ({len(differ):,} tokens differ); take that one: tokenizer=pretrained tokenizer.path={model.path}. "
            "To learn the embedding anew, give a folder of the model without its tokenizer's files"
        )


def _refuse_other_shapes(config: Config, checkpoint: Path, theirs: RunDir, corpus: Corpus) -> None:
    model = skeleton_of(config, corpus)
    try:
        held = shapes_in(checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"init.run: {error}") from error
    for name, parameter in model.named_parameters(prefix="model"):
        ours = tuple(parameter.shape)
        if held.get(name) == ours:
            continue
        there = f"{name} has shape {held[name]} there" if name in held else f"there is no {name} there{nearest(name, held)}"
        raise ConfigError(f"init.run: {config.init.run}: {there}, and {ours} here; {_mend(config, theirs)}")


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
