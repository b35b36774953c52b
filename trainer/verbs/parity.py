"""`trainer parity experiment=… [strategies=ddp,zero2] [key=value …]`: show that every strategy gives the same curve, here, for this run.

trainer parity experiment=quickstart
trainer parity experiment=quickstart strategies=single,zero3,fsdp launcher.processes=4 steps=20
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.choices import ConfigError
from trainer.options import option, parse, taken, usage

SUMMARY = "run the same steps under each strategy and compare: losses, gradients, weights, memory"

STEPS = 10


@dataclass
class Options:
    """What `parity` takes beside the words of a run."""

    strategies: str | None = option(None, help="which, with commas; the first is the reference; default: all that can run this")


def run(words: list[str]) -> int:
    """Compose, run, compare. Returns 0 where all are the same curve, else 1."""
    own, rest = taken(words, Options)
    if {"-h", "--help"} & set(rest):
        print(usage(Options, "parity [key=value …]"))
        print(f"  and the words of `trainer train`; steps={STEPS} unless a budget is given. Runs lie in runs/parity-NAME.")
        return 0
    options = parse(own, Options, "parity")
    assert options is not None
    from trainer.run import RunDir
    from trainer.trials import parity, tables
    from trainer.words import trial

    config = trial(rest, "parity", STEPS)
    console = tables.console()
    names = None if options.strategies is None else [name for name in options.strategies.split(",") if name]
    if names is not None and len(set(names)) < len(names):
        raise ConfigError(f"strategies: {options.strategies}; each once")
    with RunDir(config.output_dir).locked():
        verdict = parity.compare(config, names, console.print)
        parity.write(verdict, config)
    tables.show_parity(console, verdict)
    return 0 if verdict.good else 1
