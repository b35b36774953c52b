"""The same run under each strategy: losses, gradient norms, samples, final weights and bytes of state, held against a reference.

How far two right runs may be apart is measured, not assumed: the reference is run once more with other micro-batches, which adds the same
numbers up in another order. A bug of normalisation or synchronisation is orders of magnitude beyond that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.choices import ConfigError, find, groups
from trainer.config import Config
from trainer.front_door import launched
from trainer.run import RunDir
from trainer.trials.launching import Compared, here
from trainer.trials.outcomes import Distance, curve, distance, final, relative, samples, write_json

# What fp32 sums in another order make of some tens of steps, with room; a measured floor that is higher counts instead, this many times.
LOSS, WEIGHTS, TIMES = 1e-5, 1e-4, 5.0
FLOOR = "noise floor"


@dataclass
class Variant:
    """One of the runs. apart: by what it was compared with the reference; where: the first difference that is no noise, in words."""

    label: str
    run: RunDir
    world: int
    curve: dict[int, dict[str, Any]]
    samples: dict[int, list[int]]
    state: list[dict[str, int]]
    loss: float = 0.0
    norm: float = 0.0
    weights: Distance | None = None
    where: str = ""


@dataclass
class Verdict:
    """Reference, noise floor, the others; what was not run and why."""

    reference: Variant
    floor: Variant | None
    others: list[Variant]
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not self.failed and not any(variant.where for variant in self.others)

    def as_dict(self) -> dict[str, Any]:
        """For parity.json."""

        def plain(variant: Variant) -> dict[str, Any]:
            facts = {"strategy": variant.label, "world_size": variant.world, "run": str(variant.run.path)}
            facts |= {"loss": [line["loss"] for line in variant.curve.values()]}
            facts |= {"grad_norm": [line["grad_norm"] for line in variant.curve.values()], "state_bytes_by_rank": variant.state}
            if variant.weights is not None:
                facts |= {"loss_apart": variant.loss, "grad_norm_apart": variant.norm, "weights_apart": variant.weights.whole}
                facts |= {"furthest": variant.weights.furthest, "differs": variant.where}
            return facts

        floor = plain(self.floor) if self.floor is not None else None
        others = [plain(variant) for variant in self.others]
        return {"good": self.good, "reference": plain(self.reference), "floor": floor, "others": others} | {
            "skipped": self.skipped,
            "failed": self.failed,
        }


def variants(config: Config, names: list[str] | None) -> tuple[dict[str, Config], dict[str, str]]:
    """Strategy → configuration of its run, and strategy → why it is left out.

    names: the strategies asked for; None: all that there are. Raises ConfigError where one that was asked for cannot run this.
    """
    found: dict[str, Config] = {}
    skipped: dict[str, str] = {}
    for name in names or _order(groups()["strategy"]):
        try:
            found[name] = _under(config, name)
            found[name].launcher.ready(found[name])
        except ConfigError as error:
            if names is not None:
                raise
            found.pop(name, None)
            skipped[name] = str(error)
    if len(found) < 2:
        raise ConfigError(f"strategies: {', '.join(found) or 'none'}; at least two are needed to compare")
    return found, skipped


def _order(known: dict[str, Any]) -> list[str]:
    """`single` first: nothing is distributed there."""
    return sorted(known, key=lambda name: (name != "single", name))


def _under(config: Config, name: str) -> Config:
    """The same run under another strategy, in a folder of its own, with every step logged and nothing beside."""
    strategy: Any = config.strategy if config.strategy.name == name else find("strategy", name)()
    tracking = dataclasses.replace(config.tracking, wandb=_off(config), tensorboard=False, samples=0, ledger=True)  # type: ignore[call-arg]
    # Draws of dropout differ with the world size, so the curves of two sizes are equal without it alone.
    model = dataclasses.replace(config.model, dropout=0.0) if hasattr(config.model, "dropout") else config.model  # type: ignore[call-arg]
    placed = dataclasses.replace(
        config,
        name=f"{config.name}-{name}",
        output_dir=str(Path(config.output_dir) / name),
        strategy=strategy,
        tracking=tracking,
        model=model,
        log_every=1,
        save_every=sys.maxsize,
        eval_every=None,
        evals={},
        resume=dataclasses.replace(config.resume, overwrite=True, extend=False),
    )
    return dataclasses.replace(placed, launcher=here(placed, Compared))


def _off(config: Config) -> Any:
    return type(config.tracking.wandb).off  # type: ignore[attr-defined]


def compare(config: Config, names: list[str] | None, say: Callable[[str], None]) -> Verdict:
    """Run them, one after the other, and compare. The first is the reference. Raises ConfigError before the first is started."""
    wanted, skipped = variants(config, names)
    first, *rest = wanted
    failed: dict[str, str] = {}
    reference = _run(first, wanted[first], failed, say)
    if reference is None:
        raise ConfigError(f"strategy={first}, to which the others are compared, did not run to its end: {failed[first]}")
    floor = _run(FLOOR, _resummed(wanted[first], reference), failed, say)
    failed.pop(FLOOR, None)
    others = [variant for name in rest if (variant := _run(name, wanted[name], failed, say))]
    verdict = Verdict(reference, floor, others, skipped, failed)
    _judge(verdict)
    return verdict


def _resummed(config: Config, reference: Variant) -> Config:
    """The reference with other micro-batches."""
    size = int(reference.run.placement["micro_batch"])
    folder = Path(config.output_dir).parent / FLOOR.replace(" ", "-")
    return dataclasses.replace(config, micro_batch=-(-size // 2) if size > 1 else 2, output_dir=str(folder))


def _run(label: str, config: Config, failed: dict[str, str], say: Callable[[str], None]) -> Variant | None:
    """One run to its end; None where it came to none, with the reason in `failed`."""
    run = RunDir(config.output_dir)
    say(f"{label}: {config.strategy.name}, {config.steps} steps …")
    log = run.path.with_name(f"{run.path.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with run.locked() as lock, spoken_into(log):
        code = launched(config, run, lock.fileno()).exit_code
    if code >= 128:
        raise KeyboardInterrupt
    if code != 0:
        failed[label] = f"exit code {code}; {log} says why"
        return None
    (proof,) = run.events("proof")[-1:]
    state = [{row["kind"]: row["bytes"] for row in table if row["bytes"]} for table in proof["tables"]]
    return Variant(label, run, len(state), curve(run), samples(run), state)


@contextlib.contextmanager
def spoken_into(log: Path) -> Iterator[None]:
    """What this process and those that it starts write to the terminal goes to a file meanwhile."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with log.open("wb") as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _judge(verdict: Verdict) -> None:
    reference, floor = verdict.reference, verdict.floor
    start = final(reference.run)
    for variant in [*([floor] if floor else []), *verdict.others]:
        pairs = [(reference.curve.get(step), variant.curve.get(step)) for step in reference.curve.keys() | variant.curve.keys()]
        variant.loss = max(_apart(one, other, "loss") for one, other in pairs)
        variant.norm = max(_apart(one, other, "grad_norm") for one, other in pairs)
        variant.weights = distance(start, final(variant.run))
    loss = max(LOSS, TIMES * floor.loss) if floor else LOSS
    norm = max(WEIGHTS, TIMES * floor.norm) if floor else WEIGHTS
    weights = max(WEIGHTS, TIMES * floor.weights.whole) if floor and floor.weights else WEIGHTS
    for variant in verdict.others:
        variant.where = first_difference(reference, variant, loss, norm, weights)


def _apart(one: dict[str, Any] | None, other: dict[str, Any] | None, key: str) -> float:
    return relative((one or {}).get(key), (other or {}).get(key))


def first_difference(reference: Variant, variant: Variant, loss: float, norm: float, weights: float) -> str:
    """Where two runs part by more than allowed (relative), in the order in which a step computes; "" where they do not."""
    for step, line in reference.curve.items():
        other = variant.curve.get(step)
        if other is None:
            return f"step {step} was not computed"
        if variant.samples.get(step) != reference.samples.get(step):
            return f"the samples of step {step} are others"
        for key, allowed in (("loss", loss), ("grad_norm", norm)):
            mine, theirs = other.get(key), line.get(key)
            apart = relative(theirs, mine)
            if apart > allowed:
                return f"{_told(key, step, mine, theirs)} ({apart:.1e} apart, {allowed:.1e} allowed); {_blamed(key, step, reference)}"
    found = variant.weights
    if found is not None and found.whole > weights:
        told = f"the final weights are {found.whole:.1e} apart ({weights:.1e} allowed)"
        return f"{told}, most of all {found.furthest} ({found.at_furthest:.1e})"
    return ""


def _told(key: str, step: int, mine: float | None, theirs: float | None) -> str:
    return f"{key.replace('grad_norm', 'gradient norm')} of step {step}: {_figure(mine)}, not {_figure(theirs)}"


def _blamed(key: str, step: int, reference: Variant) -> str:
    """Which part of a step it is, when everything that is computed before agrees."""
    if key == "grad_norm":
        return "its loss agrees, so it is the backward pass, or the reduction of gradients"
    before = "the first weights, or the forward pass" if step == min(reference.curve) else f"the update of step {step - 1}"
    return f"everything before agrees, so it is {before}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.7g}"


def write(verdict: Verdict, config: Config) -> None:
    """parity.json beside the runs."""
    write_json(Path(config.output_dir) / "parity.json", verdict.as_dict())
