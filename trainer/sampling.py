"""What a model writes, at an evaluation and at the end: prompts continued, or held-out text restored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.generation import Writer

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.data.corpus import Corpus
    from trainer.distributed import World
    from trainer.strategies import Placement

_TOKENS = 120
# Of a masked model: so many held-out tokens are restored at once.
_RESTORED = 48
# Another goes on with the first words, or characters, of so many held-out tokens.
_BEGINNING, _WORDS, _CHARACTERS = 32, 4, 8
_PUNCTUATION = " \"'`“”‘’«»,.;:!?…—-*#，。；：！？、"


def samples(placement: Placement, corpus: Corpus, config: Config, world: World) -> list[dict[str, str]]:
    """`tracking.samples` texts of the model as it is now: {prompt, text}. Entered by every rank; on all but rank 0 none.

    A model that cannot write (none of ours, out of memory) costs a line, not the run.
    """
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from trainer.export import unpadded

    with placement.gathered() as module:
        if not world.leads:
            return []
        # A copy: writing wants another attention than training, and no padding rows.
        model: Any = unpadded(module.model, config.adapter, corpus.vocabulary.size, corpus.vocabulary.padded)  # type: ignore[arg-type]
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a warning of padding where there is none
    try:
        writer = Writer(model.to(world.device), AutoTokenizer.from_pretrained(corpus.tokenizer_path), config.sequence_length)
        return texts(writer, corpus, config, config.tracking.samples)  # type: ignore[attr-defined]
    except (RuntimeError, ValueError, TypeError, AttributeError, torch.OutOfMemoryError) as error:
        print(f"no samples: {type(error).__name__}: {error}".splitlines()[0], flush=True)
        return []
    finally:
        logging.set_verbosity(verbosity)


def texts(writer: Writer, corpus: Corpus, config: Config, count: int) -> list[dict[str, str]]:
    """What a model writes, {prompt, text}, at most count of them: the same for the same weights, each time."""
    if writer.fills or writer.infills:
        found = [writer.restore(ids) for ids in held_out(corpus, min(_RESTORED, writer.limit - 2), count)]
        return [{"prompt": text.partition("\n\n→ ")[0], "text": text} for text in found]
    prompts = list(getattr(config.tracking, "prompts", ()))
    if not prompts and config.data.name == "stdlib":
        prompts = ["def "]
    if not prompts:
        ids = held_out(corpus, min(_BEGINNING, writer.limit - 1), count)
        prompts = [beginning(writer.tokenizer.decode(each, skip_special_tokens=True)) for each in ids]
    numbered = [(number, prompts[number % len(prompts)]) for number in range(count)]
    return [{"prompt": prompt, "text": writer.write(prompt, _TOKENS, seed=config.seed + number)} for number, prompt in numbered]


def held_out(corpus: Corpus, length: int, count: int) -> list[list[int]]:
    """Stretches of `length` held-out tokens, at most count: one after the other, in a mixture of each source in turn."""
    streams = [each.tokens("eval") for each in corpus.named().values() if not each.members]
    found = []
    for number in range(count):
        stream, start = streams[number % len(streams)], number // len(streams) * length
        if number < len(streams) or start + length <= len(stream):
            found.append(stream.read(start, min(length, len(stream) - start)).tolist())
    return found


def beginning(text: str) -> str:
    """The first words of a text, of one without spaces the first characters: for a model to go on with."""
    words = text.split()
    return (" ".join(words[:_WORDS]) if len(words) > _WORDS else "".join(words)[:_CHARACTERS]).strip(_PUNCTUATION)
