"""What `trainer train --help` prints: groups and options with what they mean, all of them or those that its words ask for.

trainer train --help                 everything, with the values of this composition
trainer train --help optim           a group: its choices, and the options of the one in use
trainer train --help optim=muon      a choice
trainer train --help warmup          the options of such a name, in whatever choice they are
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainer import reference, verbs
from trainer.choices import IDENTITY, ConfigError, base, nearest
from trainer.composition import compose_tree, parse
from trainer.config import GROUPS
from trainer.reference import EXPERIMENT, Option, written

# Below this many columns the types stand behind the meanings.
_WIDE = 100
_KEYS = 44


def show(verb: str, words: list[str]) -> None:
    """Print help. words: overrides, which are composed, and names; those behind `--help` narrow it, or else all of them.

    Raises ConfigError for a name that is none.
    """
    flag = next((place for place, word in enumerate(words) if word in ("-h", "--help")), len(words))
    words, behind = [word for word in words if word not in ("-h", "--help")], words[flag + 1 :]
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    overrides = parse(word for word in words if word not in names)
    composed = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    chosen = [word for word in composed if word.split("=")[0] in (*GROUPS, EXPERIMENT)]
    page = _Page(compose_tree(composed), chosen)
    narrowing = [word for word in words if word in names or word in chosen]
    for name in [word for word in narrowing if word in behind] or narrowing:
        page.about(name)
    if not narrowing:
        page.everything(verb)
    page.legend()


class _Page:
    """Help under one composition. chosen: the words `group=name` that gave it."""

    def __init__(self, tree: DictConfig, chosen: list[str]):
        self.values: dict[str, Any] = OmegaConf.to_container(tree, resolve=True, throw_on_missing=False)  # type: ignore[assignment]
        self.console = Console(highlight=False)
        self.chosen = reference.default_choices() | dict(word.split("=", 1) for word in chosen)
        recipe = reference.presets(EXPERIMENT).get(self.chosen.get(EXPERIMENT) or "")
        if recipe:
            self.chosen = {group: recipe.values.get(group, name) for group, name in self.chosen.items()}
        self.marked = False

    def everything(self, verb: str) -> None:
        """The form, the flags, the run's own options, every group."""
        self.console.print(f"usage: trainer {verb} [group=name …] [key=value …] [-m] [--cfg job] [--help [WORD …]]", markup=False)
        self.console.print(f"\n{verbs.summary(verb)}\n", markup=False)
        self._pairs([
            ("group=name", "a choice: model=gpt2_small, experiment=quickstart"),
            ("key=value", "an option: optim.lr=1e-3, steps=500"),
            ("-m, --multirun", "run every combination of the values that commas part: optim.lr=1e-3,3e-3 seed=1,2"),
            ("--cfg job", "print the whole configuration and do nothing more; with -m that of each job"),
            ("--help WORD", "only a group (optim), a choice (optim=muon) or an option (warmup)"),
        ])  # fmt: skip
        self._title("the run")
        self._options(reference.run_options())
        self._title("experiment=…")
        self._choices(EXPERIMENT, [name for name in reference.names(EXPERIMENT) if not name.endswith("_offline")])
        self.console.print(Padding(Text("and NAME_offline, of each that needs the hub, without a network", "dim"), (0, 0, 0, 2)))
        for group in GROUPS:
            self._group(group)

    def about(self, name: str) -> None:
        """What one word asks for."""
        group, equals, choice = name.partition("=")
        if group == EXPERIMENT and equals:
            self._recipe(choice)
        elif group in GROUPS and equals:
            self._title(name, self._meaning(group, choice))
            self._options(reference.choice_options(group, self._class(group)))
        elif name in (*GROUPS, EXPERIMENT):
            self._title(f"{name}=…", reference.meaning(base(name)) if name in GROUPS else reference.RECIPES)
            self._choices(name)
            if name in GROUPS:
                self._group(name, others=False)
        else:
            self._search(name)

    def legend(self) -> None:
        if self.marked:
            self.console.print("\n● decides what is computed: with another value it is another run", markup=False)

    def _class(self, group: str) -> Any:
        return reference.registered(group)[self.values[group]["name"]]

    def _meaning(self, group: str, choice: str) -> str:
        preset = reference.presets(group).get(choice)
        cls = reference.registered(group).get(choice)
        return preset.meaning if preset else reference.meaning(cls) if cls else reference.meaning(self._class(group))

    def _group(self, group: str, others: bool = True) -> None:
        name = self.chosen.get(group) or self.values[group]["name"]
        self._title(f"{group}={name}", self._meaning(group, name))
        rest = [other for other in reference.names(group) if other != name]
        if others and rest:
            self.console.print(Padding(Text(f"or {', '.join(rest)}", "dim"), (0, 0, 0, 2)))
        self._options(reference.choice_options(group, self._class(group)))

    def _recipe(self, name: str) -> None:
        recipe = reference.presets(EXPERIMENT).get(name)
        self._title(f"{EXPERIMENT}={name}")
        if recipe is None:  # found on a search path of the user's
            return
        for paragraph in recipe.paragraphs:
            self.console.print(Padding(Text(paragraph), (0, 0, 1, 2)))
        self._pairs([(f"{key}={written(value)}", "") for key, value in recipe.values.items()])

    def _search(self, name: str) -> None:
        """Options whose key is the name, ends with it, or begins with it: of this composition, else of any choice."""
        mine = reference.run_options()
        for group in GROUPS:
            mine += reference.choice_options(group, self._class(group))
        if found := [option for option in mine if _is_called(option, name)]:
            self._options(found)
            return
        everywhere = {option.key for option in mine}
        hits = 0
        for group in GROUPS:
            for choice, cls in reference.registered(group).items():
                options = reference.choice_options(group, cls)
                everywhere |= {option.key for option in options}
                if found := [option for option in options if _is_called(option, name)]:
                    hits += 1
                    self._title(f"{group}={choice}", reference.meaning(cls))
                    self._options(found, composed=False)
        if not hits:
            known = {*GROUPS, EXPERIMENT, *everywhere, *(key.rpartition(".")[2] for key in everywhere)}
            raise ConfigError(f"--help {name}: no group, choice or option of that name{nearest(name, sorted(known))}")

    # -- printing -----------------------------------------------------------------------------------------------------------------

    def _title(self, name: str, meaning: str = "") -> None:
        self.console.print(Text.assemble("\n", (name, "bold"), f"  {meaning}" if meaning else ""))

    def _choices(self, group: str, names: Iterable[str] | None = None) -> None:
        """A line for each of these names, or for all that the group has."""
        self._pairs([(f"{group}={name}", self._meaning(group, name)) for name in names or reference.names(group)])

    def _pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for left, right in pairs:
            table.add_row(Text(left), Text(right))
        self.console.print(Padding(table, (0, 0, 0, 2)))

    def _options(self, options: list[Option], composed: bool = True) -> None:
        """One line an option: `key=value` as it is typed, what is allowed, what it means."""
        if not options:
            return
        wide = self.console.width >= _WIDE
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=1)
        table.add_column(overflow="fold", min_width=min(_KEYS, self.console.width // 3), max_width=max(_KEYS, self.console.width // 3))
        if wide:
            table.add_column(style="dim", min_width=14, max_width=26)
        table.add_column(ratio=1)
        for option in options:
            mark = "●" if option.role == IDENTITY else ""
            self.marked |= bool(mark)
            value = self._value(option) if composed else option.default or ""
            # What this composition changed stands out.
            key = Text.assemble(f"{option.key}=", (value, "bold cyan" if value != option.default else "cyan"))
            if wide:
                table.add_row(mark, key, Text(option.kind), Text(option.meaning))
            else:
                table.add_row(mark, key, Text.assemble(option.meaning, (f" ({option.kind})", "dim")))
        self.console.print(table)

    def _value(self, option: Option) -> str:
        value: Any = self.values
        for part in option.key.split("."):
            value = value[part]
        return written(value)


def _is_called(option: Option, name: str) -> bool:
    return option.key == name or option.key.endswith(f".{name}") or option.key.startswith(f"{name}.")
