"""`trainer generate run=runs/quickstart prompt="def "`: what a trained model writes, or what it puts in place of [MASK]."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainer.choices import ConfigError
from trainer.options import option, parse

SUMMARY = "let a trained model go on with a text, or fill in [MASK]"


@dataclass
class Options:
    """What `generate` takes."""

    run: str = option(help="run directory")
    prompt: str = option("", help="text to go on with, or one with [MASK]")
    max_tokens: int = option(200, help="most tokens that are added")
    temperature: float = option(0.8, help="0: always the likeliest token")
    top_k: int = option(50, help="sample among so many of the likeliest")
    samples: int = option(1, help="how many texts")
    seed: int = option(0, help="of the sampling")

    def __post_init__(self) -> None:
        for key, least in (("max_tokens", 1), ("temperature", 0), ("top_k", 1), ("samples", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key}: {getattr(self, key)}; at least {least}")


def run(words: list[str]) -> int:
    """Print the text. Raises ConfigError where there is no such run, or no model yet."""
    options = parse(words, Options, "generate")
    if options is None:
        return 0
    from trainer.front_door import finished
    from trainer.run import load_frozen

    found = finished(options.run)
    config = load_frozen(found.config_path)
    seeds = range(options.seed, options.seed + options.samples)
    from trainer.generation import open_writer, replies
    from trainer.tasks.writing import Writing

    if isinstance(config.task, Writing):
        _print_texts(replies(found / "model", config, options.prompt, options.max_tokens, options.temperature, options.top_k, seeds))
        return 0
    writer = open_writer(found / "model", config.sequence_length)
    if writer.fills:
        _print_guesses(writer.fill(options.prompt), options.prompt, writer.tokenizer.mask_token)
        return 0
    _print_texts(writer.write(options.prompt, options.max_tokens, options.temperature, options.top_k, seed) for seed in seeds)
    return 0


def _print_texts(texts: Iterable[str]) -> None:
    for number, text in enumerate(texts):
        if number:
            print("\n" + "─" * 40)
        print(text, flush=True)


def _print_guesses(places: list, prompt: str, mask: str) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    best = prompt
    for guesses in places:
        best = best.replace(mask, guesses[0].token, 1)
    console.print(best, markup=False)
    for number, guesses in enumerate(places, 1):
        table = Table(title=f"{mask} {number} of {len(places)}".replace("[", r"\["), title_justify="left", box=None)
        table.add_column("token")
        table.add_column("probability", justify="right")
        for guess in guesses:
            table.add_row(guess.token.replace("[", r"\["), f"{guess.probability:.1%}")
        console.print(table)
