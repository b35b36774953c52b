"""`trainer try run=runs/quickstart`: a page on this machine where a person types and the model answers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.choices import ConfigError
from trainer.options import option, parse, require_device

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.run import RunDir
    from trainer.trying.forms import Form

SUMMARY = "a page on this machine where you type and a trained model answers"

PACKAGES = ("starlette", "uvicorn")
# Held-out examples that the page offers, and tokens of each that is a text.
_OFFERED, _TOKENS = 4, 24


@dataclass
class Options:
    """What `try` takes."""

    run: str = option(help="run directory")
    port: int = option(7860, help="of the page on 127.0.0.1; 0: any that is free")
    device: str | None = option(None, help="cpu or cuda; default: a GPU where there is one")

    def __post_init__(self) -> None:
        require_device(self.device)
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port: {self.port}; from 0 to 65535")


def run(words: list[str]) -> int:
    """Serve the page until Ctrl-C. Raises ConfigError where there is no such run, no model yet, or the port is taken."""
    options = parse(words, Options, "try")
    if options is None:
        return 0
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"try: {missing[0]} is not here; pip install 'shardloom[try]'")
    from trainer.distributed import device_of
    from trainer.front_door import console, finished
    from trainer.run import load_frozen
    from trainer.trying import server
    from trainer.trying.forms import form_of

    found = finished(options.run)
    with server.listening(options.port) as at:
        config = load_frozen(found.config_path)
        with console.status("loading the model …"):
            form = form_of(found, config, device_of(options.device))
        page = server.Page(form, config.name, offered(found, config, form))
        console.print(f"[bold]http://{server.LOOPBACK}:{at.getsockname()[1]}[/] until Ctrl-C", soft_wrap=True)
        server.serve(page, at)
    return 0


def offered(run: RunDir, config: Config, form: Form) -> list[dict[str, str]]:
    """Held-out examples for the form, in the words of its inputs; none where the run's data are gone."""
    from trainer.data.corpus import open_corpus
    from trainer.data.tokenizer_files import load_tokenizer
    from trainer.sampling import held_out

    try:
        corpus = open_corpus(run.placement["corpus"], run.placement["rows"])
    except (ConfigError, KeyError):
        return []
    if corpus.examples:
        source = next(part for part in corpus.named().values() if not part.members)
        records = source.records("eval")
        count = min(_OFFERED, len(records))
        found = [form.filled(records[number * len(records) // count]) for number in range(count)]
    else:
        tokenizer = load_tokenizer(corpus.tokenizer_path)
        texts = (tokenizer.decode(ids, skip_special_tokens=True) for ids in held_out(corpus, _TOKENS, _OFFERED))
        found = [form.filled({"text": text}) for text in texts]
    return [values for values in found if values]
