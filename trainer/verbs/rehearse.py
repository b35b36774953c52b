"""`trainer rehearse experiment=… kills=N [key=value …]`: kill a run of one's own again and again, and show that nothing is lost.

trainer rehearse experiment=quickstart steps=200 kills=10
trainer rehearse experiment=quickstart steps=400 kills=50 strategies=ddp,zero2,fsdp worlds=1,2,3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.choices import ConfigError
from trainer.options import option, parse, taken, usage

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.trials.rehearsal import Place

SUMMARY = "kill a run with SIGKILL at random moments, resume, and compare with the run left alone"


@dataclass
class Options:
    """What `rehearse` takes beside the words of a run."""

    kills: int = option(10, help="how often it is killed")
    strategies: str | None = option(None, help="with commas: drawn at each launch; default: that of the run")
    worlds: str | None = option(None, help="numbers of processes, with commas: drawn at each launch; default: that of the run")
    seed_of_kills: int = option(0, help="of the moments and placements that are drawn")

    def __post_init__(self) -> None:
        if self.kills < 1:
            raise ConfigError(f"kills: {self.kills}; at least 1")


def run(words: list[str]) -> int:
    """Compose, train alone, train killed, compare. Returns 0 where nothing was lost, else 1."""
    own, rest = taken(words, Options)
    if {"-h", "--help"} & set(rest):
        print(usage(Options, "rehearse [key=value …]"))
        print("  and the words of `trainer train`. Runs lie in runs/rehearse-NAME; checkpoints are saved at least 20 times over a run.")
        return 0
    options = parse(own, Options, "rehearse")
    assert options is not None
    from trainer.run import RunDir
    from trainer.trials import rehearsal, tables
    from trainer.words import trial

    config = trial(rest, "rehearse")
    console = tables.console()
    with RunDir(config.output_dir).locked():
        verdict = rehearsal.rehearse(config, options.kills, _places(options, config), options.seed_of_kills, console.print)
        rehearsal.write(verdict, config)
    console.print(rehearsal.text(verdict), end="", markup=False)
    return 1 if verdict.problems else 0


def _places(options: Options, config: Config) -> list[Place]:
    """Every strategy on every number of processes; first the one that the run has by itself."""
    from trainer.trials.rehearsal import Place

    own = Place(config.strategy.name, config.launcher.ready(config))
    names = [own.strategy] if options.strategies is None else [name for name in options.strategies.split(",") if name]
    worlds = [own.world] if options.worlds is None else [_world(word) for word in options.worlds.split(",")]
    found = [Place(name, 1) for name in names if name == "single"]
    found += [Place(name, world) for name in names if name != "single" for world in worlds]
    # None: a pretrained model's own, which may be any.
    dropout = getattr(config.model, "dropout", 0.0)
    if len(found) > 1 and dropout != 0:
        raise ConfigError(
            f"model.dropout: {dropout}: its draws differ between placements, so weights could not be compared; "
            "set model.dropout=0, or leave strategies= and worlds= out"
        )
    return [own, *(place for place in dict.fromkeys(found) if place != own)] if own in found else found


def _world(word: str) -> int:
    if not word.isdecimal() or word == "0":
        raise ConfigError(f"worlds: {word!r}; numbers of processes from 1, with commas: worlds=1,2,3")
    return int(word)
