"""The model card, README.md: what the model is, how it came about and how good it is, from the files of its run alone."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.choices import IDENTITY
from trainer.config import digest
from trainer.data.batches import batches_of
from trainer.export.command import command_of
from trainer.export.loading import PIPELINES, library_of, loads
from trainer.reference import choice_options, written
from trainer.tracking import jsonl
from trainer.tracking.figures import baselines, shown, stopped_early
from trainer.tracking.progress import duration
from trainer.tracking.report import relative
from trainer.verbs.export import TAG
from trainer.versions import versions

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData
    from transformers import PreTrainedModel

    from trainer.checkpoint.opening import Opened
    from trainer.config import Config
    from trainer.data.corpus import Corpus
    from trainer.export import Form
    from trainer.export.graph import Graph
    from trainer.run import RunDir

Rows = list[tuple[str, str]]

# What a hub calls a figure, where that is not its own name.
_METRICS = {"mcc": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
# Labels that are named, at most.
_NAMED = 20


@dataclass(frozen=True)
class Subject:
    """What a card is about: a checkpoint of a run, and the form that it is given. model: without values. folder: where it will lie.

    graphs: those that are there beside it.
    """

    run: RunDir
    config: Config
    corpus: Corpus
    opened: Opened
    model: PreTrainedModel
    form: Form
    folder: Path
    graphs: Sequence[Graph]


def write_card(path: Path, subject: Subject) -> None:
    """Write README.md."""
    from huggingface_hub import ModelCard

    from trainer.export.template import TEMPLATE

    found = facts(subject)
    ModelCard(f"---\n{metadata(subject, found).to_yaml()}\n---\n\n{_rendered(TEMPLATE, found)}").save(path)


def _rendered(template: str, found: dict[str, Any]) -> str:
    from jinja2 import Environment

    def cell(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", " ")

    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["cell"] = cell
    return environment.from_string(template).render(found)


def facts(subject: Subject) -> dict[str, Any]:
    """What the card says."""
    run, config, corpus, opened, model, form = subject.run, subject.config, subject.corpus, subject.opened, subject.model, subject.form
    figures = results(jsonl.read(run / jsonl.METRICS), opened.step)
    summed = dict(figures) | config.task.baselines(corpus)
    beside = baselines({key.removeprefix("eval_"): value for key, value in summed.items()})
    place = form.repository or relative(subject.folder)
    environment = (run.events("environment") or [{}])[-1]
    return {
        "name": (form.repository or config.name).rpartition("/")[2],
        "place": place,
        "loads": _loads(subject, place),
        "graphs": subject.graphs,
        "architecture": type(model).__name__,
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "origin": _origin(config),
        "step": f"{opened.step:,}",
        "ending": _ending(subject),
        "model": [*_model(config, model, form), *_labels(config, corpus)],
        "adapter": None if form.merge or not config.adapter.adapts else config.adapter.name,
        "data": _data(config, corpus),
        "tokenizer": _tokenizer(config, corpus),
        "recipe": _recipe(config, opened),
        "ran": _ran(run, environment),
        "results": [(_named(key), shown(key, value), beside.get(key.removeprefix("eval_"), "")) for key, value in figures.items()],
        "figures": figures,
        "command": command_of(config),
        "versions": environment.get("versions") or versions(),
        "digest": digest(config),
        "fingerprint": corpus.fingerprint,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "objective": config.objective,
        "task": config.task.name,
        "labels": bool(config.task.labels_of(corpus).get("id2label")),
        "sequence_length": f"{config.sequence_length:,}",
        "tokens": f"{opened.state['tokens']:,}",
    }


def _ending(subject: Subject) -> str:
    """Why the run had not seen all of its budget at this step, as the end of a sentence; empty where it had."""
    if subject.opened.state["position"] >= batches_of(subject.config, subject.corpus.split("train")).total:
        return ""
    early = subject.run.events("early_stop")
    return f", of a run that {stopped_early(early[-1])}" if early else ", of a run that had not reached its budget"


def metadata(subject: Subject, found: dict[str, Any]) -> ModelCardData:
    """What a hub reads of the card."""
    from huggingface_hub import ModelCardData

    config = subject.config
    hub = [config.data.path] if config.data.name == "hub" and not Path(config.data.path).exists() else None  # type: ignore[attr-defined]
    base = getattr(config.model, "path", None)
    pipeline = PIPELINES.get(config.objective)
    library = library_of(config.adapter, subject.form.merge)
    # A hub takes one figure of a kind: those of the whole held-out part, not of a source or a set.
    parts = tuple(f"eval_{name}_" for name in (*filter(None, subject.corpus.named()), *config.evals))
    whole = {key: value for key, value in found["figures"].items() if key.startswith("eval_") and not key.startswith(parts)}
    results = list(_evaluated(config, whole, pipeline, hub))
    adapts: dict[str, Any] = {"base_model_relation": "adapter"} if library != "transformers" and base and not Path(base).exists() else {}
    return ModelCardData(
        license=subject.form.license,
        library_name=library,
        pipeline_tag=pipeline,
        tags=[TAG, str(subject.model.config.model_type), config.task.name],
        datasets=hub,
        base_model=base if base and not Path(base).exists() else None,
        model_name=found["name"],
        eval_results=results or None,
        **adapts,
    )


def _evaluated(config: Config, figures: dict[str, float], pipeline: str | None, hub: list[str] | None) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for key, value in figures.items():
        kind = key.removeprefix("eval_")
        yield EvalResult(
            task_type=pipeline or "text-generation",
            dataset_type=hub[0] if hub else config.data.name,
            dataset_name=f"{hub[0] if hub else config.data.name}, held out",
            metric_type=_metric(kind),
            metric_name=kind.replace("_", " "),
            metric_value=round(value, 6),
        )


def _metric(kind: str) -> str:
    """What a hub calls a figure: one name for those of several means."""
    if kind.endswith("accuracy"):
        return "accuracy"
    return "f1" if kind.startswith("f1_") else "rouge" if kind.startswith("rouge") else _METRICS.get(kind, kind)


def results(lines: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Held-out figures of a step, and the training loss there. Of a step that was not evaluated: none but the loss."""
    lines = [line for line in lines if line.get("step") == step]
    found = {key: value for line in lines for key, value in line.items() if key.startswith("eval_") and isinstance(value, (int, float))}
    loss = [line["loss"] for line in lines if isinstance(line.get("loss"), (int, float))]
    return found | ({"loss": loss[-1]} if loss else {})


def _named(key: str) -> str:
    named = {"loss": "training loss, at this step", "eval_loss": "loss"}
    return named.get(key, key.removeprefix("eval_").replace("_", " "))


def _loads(subject: Subject, place: str) -> str:
    from trainer.export.adapter import base_path

    config, corpus = subject.config, subject.corpus
    form = subject.form
    return loads(config, config.task.labels_of(corpus), place, base_path(config), form.merge, form.repository is not None)


def _labels(config: Config, corpus: Corpus) -> Rows:
    names = list(config.task.labels_of(corpus).get("id2label", {}).values())
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return [("labels", ", ".join(f"`{name}`" for name in names[:_NAMED]) + more)] if names else []


def _origin(config: Config) -> str:
    """What it was trained from."""
    if config.model.name == "pretrained":
        return f"trained from the weights of `{config.model.path}`"  # type: ignore[attr-defined]
    return f"trained from the weights of another run, `{config.init.run}`" if config.init.run else "trained from scratch"


def _options(group: str, chosen: Any) -> Iterator[tuple[str, str]]:
    """Every option of a choice that decides what is computed, by its name within the group."""
    for option in choice_options(group, type(chosen)):
        if option.role != IDENTITY:
            continue
        value: Any = chosen
        for part in option.key.split(".")[1:]:
            value = getattr(value, part)
        if value is not None:
            yield option.key.partition(".")[2].replace("_", " "), written(value)


def _model(config: Config, model: PreTrainedModel, form: Form) -> Rows:
    table: Any = model.get_input_embeddings()
    sizes = [] if config.model.name == "pretrained" else list(_options("model", config.model))
    return [
        ("architecture", f"`{type(model).__name__}`"),
        *sizes,
        ("vocabulary", f"{table.num_embeddings:,}"),
        ("parameters in embeddings", f"{table.weight.numel():,}"),
        ("type of the weights", f"{form.dtype}; trained in float32 ({config.precision.name} products)"),
        ("weights", f"moving averages, decay {config.optim.ema.decay}" if form.averages else "as trained"),
    ]


def _data(config: Config, corpus: Corpus) -> list[dict[str, str]]:
    """Each source: what it is, and its documents and tokens. Of a mixture also its share of the samples."""
    from trainer.data.mixture import leaves

    parts = {name: part for name, part in corpus.named().items() if not part.members}
    found = []
    for name, _, share, source in leaves(config.data):
        splits = parts[name].meta["splits"]
        where = [getattr(source, key) for key in ("path", "train") if getattr(source, key, None)]
        row = {"name": name or source.name, "what": f"`{source.name}`" + (f" `{written(where[0])}`" if where else "")}
        if name:
            row["share"] = f"{float(share):.1%}"
        for split in ("train", "eval"):
            documents = splits[split]["documents"]
            what = "example" if parts[name].examples else "document"
            row[split] = f"{documents:,} {what}{'' if documents == 1 else 's'}, {parts[name].token_count(split):,} tokens"
        found.append(row)
    return found


def _tokenizer(config: Config, corpus: Corpus) -> str:
    size = f"{corpus.vocabulary.size:,} tokens"
    if config.tokenizer.name == "train":
        kind = config.tokenizer.algorithm(config.task.tokenizer_kind)  # type: ignore[attr-defined]
        return f"{kind}, {size}, trained on the training text"
    path = getattr(config.tokenizer, "path", None)
    return f"{size}, {f'of `{path}`' if path else config.tokenizer.name}"


def _recipe(config: Config, opened: Opened) -> Rows:
    budget = next(f"{getattr(config, key):,} {key}" for key in ("steps", "tokens", "epochs") if getattr(config, key) is not None)
    ramp = f", growing from {config.batch_ramp.start}" if config.batch_ramp.start is not None else ""
    chosen = {group: ", ".join(f"{key} {value}" for key, value in _options(group, getattr(config, group))) for group in
              ("task", "optim", "schedule")}  # fmt: skip
    return [
        ("objective", f"`{config.task.name}`" + (f": {chosen['task']}" if chosen["task"] else "")),
        ("optimizer", f"`{config.optim.name}`: {chosen['optim']}"),
        ("schedule", f"`{config.schedule.name}`: {chosen['schedule']}"),
        ("global batch", f"{config.global_batch} rows of {config.sequence_length} tokens{ramp}"),
        ("precision", f"`{config.precision.name}`"),
        ("budget", budget),
        ("this checkpoint", f"step {opened.step:,}: {opened.state['position']:,} samples, {opened.state['tokens']:,} tokens"),
        ("seed", str(config.seed)),
    ]


def _ran(run: RunDir, environment: dict[str, Any]) -> Rows:
    """On what it ran, as its events tell."""
    starts, events = run.events("start"), run.events()
    found = []
    if starts:
        places = list(dict.fromkeys(f"`{start['strategy']}` on {start['world_size']}" for start in starts))
        found.append(("placement", "; then ".join(places) + f" × {environment['device']}" * bool(environment)))
        found.append(("time since the first start", duration(events[-1]["time"] - events[0]["time"])))
    return found
