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
        model: Any = unpadded(module.model, corpus.vocabulary.size, corpus.vocabulary.padded)  # type: ignore[arg-type]
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
    """What a model writes, {prompt, text}: the same count of texts for the same weights, each time."""
    if writer.fills or writer.infills:
        return _restored(writer, corpus, min(_RESTORED, writer.limit - 2), count)
    # Source code begins in few ways; most other text can begin anyhow.
    prompts = getattr(config.tracking, "prompts", None) or ["def " if config.data.name == "stdlib" else ""]
    found = []
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        found.append({"prompt": prompt, "text": writer.write(prompt, _TOKENS, seed=config.seed + number)})
    return found


def _restored(writer: Writer, corpus: Corpus, length: int, count: int) -> list[dict[str, str]]:
    tokens = corpus.split("eval").tokens
    starts = [number * length for number in range(count) if number == 0 or (number + 1) * length <= len(tokens)]
    found = [writer.restore(tokens.read(start, min(length, len(tokens) - start)).tolist()) for start in starts]
    return [{"prompt": text.partition("\n\n→ ")[0], "text": text} for text in found]
