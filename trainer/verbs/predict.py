"""`trainer predict run=runs/x input=new.jsonl output=scored.jsonl`: what a trained model says of every example of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.choices import ConfigError
from trainer.options import option, parse, require_device

SUMMARY = "answer every example of a file with a fine-tuned model"


@dataclass
class Options:
    """What `predict` takes."""

    run: str = option(help="run directory")
    input: str = option(
        help="file, folder or pattern of examples: jsonl, csv, tsv, parquet or arrow, with the columns of the training data"
    )
    output: str = option(help="file to write: .jsonl or .csv; each example with what is predicted of it")
    batch_tokens: int = option(8192, help="tokens that are computed together")
    device: str | None = option(None, help="cpu or cuda; default: a GPU where there is one")

    def __post_init__(self) -> None:
        require_device(self.device)
        if not self.output.endswith((".jsonl", ".csv")):
            raise ConfigError(f"output: {self.output}; allowed: a file ending in .jsonl or .csv")
        if not Path(self.output).parent.is_dir():
            raise ConfigError(f"output: {self.output}: there is no folder {Path(self.output).parent}; make it, or name another")
        if self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens: {self.batch_tokens}; at least 1")


def run(words: list[str]) -> int:
    """Write the answers. Raises ConfigError where there is no such run, no model yet, or an input that cannot be read."""
    options = parse(words, Options, "predict")
    if options is None:
        return 0
    from trainer.distributed import device_of
    from trainer.front_door import console, finished
    from trainer.predicting import Predictor, predict
    from trainer.run import load_frozen

    found = finished(options.run)
    config = load_frozen(found.config_path)
    predictor = Predictor(found / "model", config, device_of(options.device))
    with console.status("predicting …") as status:
        done = predict(
            predictor, config, options.input, Path(options.output), options.batch_tokens, lambda count: status.update(f"{count:,} examples")
        )
    console.print(f"{done:,} examples: {options.output}")
    return 0
