"""The words of a verb that composes a run: its flags, the multirun, and what `--cfg job` prints."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from trainer.choices import ConfigError
from trainer.composition import compose_tree, parse, sweep, to_config
from trainer.config import BUDGETS, UNNAMEABLE, Config

_FLAGS = ("-h", "--help", "-m", "--multirun", "--cfg")


def composed(words: list[str], verb: str) -> list[Config] | None:
    """The configurations that the words ask for: one, or one a job of a multirun. None: they asked for help or for the YAML."""
    overrides, flags = split(words)
    if flags & {"-h", "--help"}:
        from trainer import manual

        manual.show(verb, split(words, keep=("-h", "--help"))[0])
        return None
    several = bool(flags & {"-m", "--multirun"})
    if not several and (word := next((override.input_line for override in parse(overrides) if override.is_sweep_override()), None)):
        key, value = word.split("=", 1)
        raise ConfigError(f"{key}: {value} is several values; add -m to run each, or quote one that holds commas: '{key}=\"{value}\"'")
    trees = job_trees(overrides) if several else [compose_tree(overrides)]
    if "--cfg" in flags:
        for number, tree in enumerate(trees):
            print("---\n" * (number > 0) + OmegaConf.to_yaml(tree, resolve=True), end="")
        return None
    if verb == "prepare":
        # The same data serves every budget.
        trees = [with_budget(tree) for tree in trees]
    return [to_config(tree) for tree in trees]


def split(words: list[str], keep: tuple[str, ...] = ()) -> tuple[list[str], set[str]]:
    """(overrides and the flags to keep, flags). Raises ConfigError where `--cfg` is followed by something else than `job`."""
    overrides, flags, rest = [], set(), iter(words)
    for word in rest:
        if word not in _FLAGS or word in keep:
            overrides.append(word)
        if word not in _FLAGS:
            continue
        flags.add(word)
        if word == "--cfg" and (what := next(rest, None)) != "job":
            raise ConfigError(f"--cfg: {'nothing' if what is None else repr(what)} after it; allowed: --cfg job")
    return overrides, flags


def multirun(overrides: list[str]) -> list[Config]:
    """One configuration a job."""
    return [to_config(tree) for tree in job_trees(overrides)]


def job_trees(overrides: list[str]) -> list[DictConfig]:
    """One composition a job, set apart by the overrides that vary, sorted: its name, and its run directory below the common one."""
    varying = {override.key_or_group for override in parse(overrides) if override.is_sweep_override()}
    trees = []
    for job in sweep(overrides):
        tree = compose_tree(job)
        own = sorted(word.lstrip("+") for word in job if word.lstrip("+").split("=", 1)[0] in varying)
        if own:
            # The directory is computed from the common name, so it comes first.
            tree.output_dir = "/".join([tree.output_dir, ",".join(own).replace("/", "_")])
            tree.name = UNNAMEABLE.sub("_", ",".join([tree.name, *(word for word in own if not word.startswith("name="))]))
        trees.append(tree)
    return trees


def trial(words: list[str], verb: str, steps: int | None = None) -> Config:
    """The one configuration of a trial of a run, in a folder of its own beside the runs. steps: the budget where the words give none."""
    overrides, flags = split(words)
    if flags or any(override.is_sweep_override() for override in parse(overrides)):
        raise ConfigError(f"{verb} tries one configuration; leave out -m, --cfg and values in commas")
    keys = {override.key_or_group for override in parse(overrides)}
    if steps is not None and not keys & set(BUDGETS):
        overrides = [*overrides, f"steps={steps}"]
    tree = compose_tree(overrides)
    if "output_dir" not in keys:
        tree.output_dir = f"runs/{verb}-{tree.name}"
    return to_config(tree)


def with_budget(tree: DictConfig) -> DictConfig:
    """The composition with a budget of one step where it has none."""
    if all(tree[key] is None for key in BUDGETS):
        tree.steps = 1
    return tree
