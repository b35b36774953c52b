"""What mkdocs cannot read from a file of docs/: sections generated from the code, and documents of the repository's other folders.

A page says where a generated section goes with a line `<!-- generated: configuration -->`.
"""

from __future__ import annotations

import itertools
import os
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from trainer import reference, verbs
from trainer.choices import IDENTITY, Choice, base, load_choices
from trainer.config import GROUPS
from trainer.reference import Option, Preset, written
from trainer.strategies import matrix

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
ADDRESS = re.compile(r"https?://[^\s,)]*\w")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
# Documents that stay where a reader of the repository looks for them, by the page that they become.
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "benchmarks/LOG.md": "measurements.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents that lie elsewhere, and list every page in the navigation."""
    load_choices(launchers=True)
    for path, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    listed = set(_listed(config.nav))
    more = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in listed)
    if more and config.nav is not None:
        config.nav = [*config.nav, {"More": more}]
    return files


def _listed(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    if isinstance(nav, dict):
        nav = list(nav.values())
    return [page for entry in nav or [] for page in _listed(entry)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and point links that leave docs/ to a page of the site, or to nothing."""
    origin = next((path for path, name in ELSEWHERE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    pointed = LINK.sub(lambda match: _pointed(match, origin), markdown)
    return MARKER.sub(lambda match: GENERATED[match[1]](), pointed)


def _pointed(match: re.Match[str], origin: str) -> str:
    text, target = match.groups()
    path, _, anchor = target.partition("#")
    whole = os.path.normpath(os.path.join(os.path.dirname(origin), path))
    if ":" in target or not path or not (ROOT / whole).exists():
        return match[0]  # an address, a place on the page, or a mistake that mkdocs tells
    inside = ELSEWHERE.get(whole) or (whole.removeprefix("docs/") if whole.startswith("docs/") else None)
    if inside is None:  # a file of the repository is no page of the site
        return text if whole in text else f"{text} (`{whole}`)"
    return f"[{text}]({inside}{'#' * bool(anchor)}{anchor})"


# -- generated sections -----------------------------------------------------------------------------------------------------------


def configuration() -> str:
    """Every option of a run: those that stand in no group, then group by group."""
    return "\n\n".join(["### The run", table(reference.run_options()), *(part for group in GROUPS for part in _group(group))])


def _group(group: str) -> list[str]:
    choices = reference.registered(group)
    options = {name: reference.choice_options(group, cls) for name, cls in choices.items()}
    common = [option for option in next(iter(options.values())) if all(option in others for others in options.values())]
    parts = [f"### `{group}`", f"{reference.meaning(base(group))} Default: `{group}={reference.default_choices()[group]}`."]
    if len(choices) > 1 and common:
        parts += [f"**Every `{group}` has**", table(common)]
    for name, cls in choices.items():
        parts += _choice(group, name, cls, [option for option in options[name] if len(choices) == 1 or option not in common])
    return parts


def _choice(group: str, name: str, cls: type[Choice], options: list[Option]) -> list[str]:
    parts = [f"#### `{group}={name}`", reference.meaning(cls)]
    presets = [preset for preset in reference.presets(group).values() if preset.base == name]
    if presets:
        rows = [f"| `{group}={preset.name}` | {preset.meaning} | {_sets(preset.values)} |" for preset in presets]
        parts.append("\n".join(["| preset | what | sets |", "|---|---|---|", *rows]))
    return [*parts, table(options)] if options else parts


def _sets(values: dict[str, Any]) -> str:
    return " ".join(f"`{key}={cell(written(value))}`" for key, value in values.items())


def table(options: list[Option]) -> str:
    """Options as a Markdown table; ● marks those that are identity."""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for option in options:
        default = "" if option.default is None else f"`{cell(option.default)}`"
        mark = " ●" if option.role == IDENTITY else ""
        rows.append(f"| `{option.key}`{mark} | {cell(option.kind)} | {default} | {cell(option.meaning)} |")
    return "\n".join(rows)


def cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def strategies() -> str:
    """The strategies, each with its meaning."""
    rows = [f"| `strategy={name}` | {reference.meaning(cls)} |" for name, cls in reference.registered("strategy").items()]
    return "\n".join(["| strategy | what it does |", "|---|---|", *rows])


def recipes() -> str:
    """The headers of conf/experiment/: all recipes at a glance, then one section each, with the sibling that rehearses it."""
    found = reference.presets(reference.EXPERIMENT)
    own = {name: preset for name, preset in found.items() if not name.endswith("_offline")}
    parts = [
        "\n".join(["| recipe | what |", "|---|---|", *(f"| [`{name}`](#{name}) | {preset.meaning} |" for name, preset in own.items())])
    ]
    for name, preset in own.items():
        parts.append(_recipe(f"## `{name}`", preset))
        if sibling := found.get(f"{name}_offline"):
            parts.append(_recipe(f"#### `{sibling.name}`", sibling))
    return "\n\n".join(parts)


def _recipe(title: str, preset: Preset) -> str:
    """A header as Markdown: commands are code, the word of `Word: text` stands out, addresses are links."""
    parts = [title]
    for is_command, texts in itertools.groupby(preset.paragraphs, lambda text: text.startswith("  ")):
        if is_command:
            parts.append("\n".join(["```bash", *(text.strip() for text in texts), "```"]))
        else:
            parts += [ADDRESS.sub(r"<\g<0>>", re.sub(r"^([A-Z]\w+): ", r"**\1:** ", text)) for text in texts]
    values = {key: value for key, value in preset.values.items() if key != "name"}
    return "\n\n".join([*parts, f"Sets {_sets(values)}"])


def verb_table() -> str:
    """The verbs of the command."""
    names = sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))
    return "\n".join(["| verb | what it does |", "|---|---|", *(f"| `trainer {name}` | {verbs.summary(name)} |" for name in names)])


GENERATED: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "matrix": matrix.markdown,
    "recipes": recipes,
    "strategies": strategies,
    "support": matrix.support,
    "verbs": verb_table,
}
