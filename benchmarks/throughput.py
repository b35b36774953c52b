"""Tokens a second and MFU of GPT-2 124M: our loop and transformers' Trainer on the same full rows of text, in turns."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.pace import Pace, spread
from benchmarks.peers import hugging_face, ours
from benchmarks.peers.rows import IGNORED, Data, Samples, build_model, packed
from trainer import compose, mfu
from trainer.config import Config
from trainer.tasks import Batch

REAL = ("model=gpt2_small", "data=stdlib", "tokenizer.vocab_size=32768", "sequence_length=1024", "global_batch=32", "micro_batch=32",
        "precision=bf16", "steps=40")  # fmt: skip
TOY = ("model=gpt2_tiny", "model.layers=1", "model.hidden=32", "model.heads=2", "data=text", "tokenizer.vocab_size=512",
       "sequence_length=64", "global_batch=4", "micro_batch=4", "precision=fp32", "steps=6")  # fmt: skip
VOCABULARY = 50304  # GPT-2's 50,257, padded as its head is
SAME = ("strategy=single", "schedule.warmup=0", "log_every=10", "tracking.wandb=off")
OURS = "Shardloom, eager"


def blocks(samples: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Full rows as users of Trainer cut them: labels are the inputs, documents in a row see each other."""
    rows = [sample.inputs["input_ids"][0] for sample in samples]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return {"input_ids": ids, "labels": labels}


def with_vocabulary(data: Data, folder: Path, size: int) -> Data:
    """The same text under a vocabulary of `size`, so that embedding and head have that size; the ids it adds occur nowhere."""
    folder.mkdir()
    for path in data.corpus.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "special.json").unlink()
    special = json.loads((data.corpus / "special.json").read_text())
    (folder / "special.json").write_text(json.dumps(special | {"size": size}))
    return Data(folder, data.rows)


def contest(toy: bool, save: Callable[[dict[str, Any]], None], rounds: int = 2) -> dict[str, Any]:
    """Every loop once a round; one that fails is left out from then on. save: called after every turn with what there is."""
    source = (f"data.path={Path(__file__).resolve().parents[1]}/trainer/**/*.py",) if toy else ()
    config = compose(*(TOY if toy else REAL), *SAME, *source)
    warm = 2 if toy else 10
    found: dict[str, list[Pace]] = {}
    failed: dict[str, str] = {}
    result: dict[str, Any] = {"good": False, "said": "nothing", "figures": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = packed(config) if toy else with_vocabulary(packed(config), Path(folder) / "corpus", VOCABULARY)
        samples = Samples(config, data)
        model = build_model(config, data)
        work, numbers = Work(config, samples, model), count()
        del model

        def by_trainer(**arguments: Any) -> Pace:
            return hugging_face.train(config, build_model(config, data), samples, blocks, warm, **arguments)

        loops: dict[str, Callable[[], Pace]] = {
            OURS: lambda: ours.pace(config, data, Path(folder) / f"run-{next(numbers)}", warm),
            "transformers.Trainer, eager": by_trainer,
        }
        if not toy:
            loops["transformers.Trainer, torch_compile"] = partial(by_trainer, torch_compile=True)
        for _ in range(rounds):
            for name in [name for name in loops if name not in failed]:
                try:
                    found.setdefault(name, []).append(loops[name]())
                except Exception as error:
                    traceback.print_exc()
                    failed[name] = f"{type(error).__name__}: {error}"[:300]
                result = work.result(found, failed, len(loops))
                save(result)
    return result


class Work:
    """What a step computes, for rates of the same work whoever does it."""

    def __init__(self, config: Config, samples: Samples, model: torch.nn.Module):
        split, picks, steps = samples.split, samples.picks, config.steps or 1
        lengths = [int(length) for pick in picks for length in split.rows.pieces(pick.row)[:, 1]]
        self.tokens = sum(lengths) / steps
        work = mfu.work_of(model, ["clm"])  # type: ignore[arg-type]
        assert work is not None, "GPT-2 is measured here"
        self.flops = work.flops(sum(lengths), {"clm": sum(lengths)}, lengths) / steps
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.documents = len(lengths) / len(picks)
        self.peak = mfu.device_peak(torch.device("cuda")) if torch.cuda.is_available() else None

    def result(self, found: dict[str, list[Pace]], failed: dict[str, str], loops: int) -> dict[str, Any]:
        """A part's result as gpu.py keeps it."""
        rows, figures = [], {}
        for name, paces in found.items():
            if not paces:
                continue
            rate = spread([self.tokens / pace.wall for pace in paces])
            used = None if self.peak is None else self.flops / self.tokens * rate.median / self.peak
            figures[name] = {"tokens_per_second": rate.median, "low": rate.low, "high": rate.high, "mfu": used, "rounds": len(paces)}
            mine = figures[OURS]["tokens_per_second"] if OURS in figures else None
            times = f"{mine / rate.median:.2f} ×" if mine else ""
            rows.append([name, f"{rate.median:,.0f}", f"{rate.low:,.0f} – {rate.high:,.0f}", "" if used is None else f"{used:.1%}", times])
        rows += [[name, why, "", "", ""] for name, why in failed.items()]
        head = ["loop", "tokens/s, median", "smallest – largest", "MFU", "ours is"]
        about = (
            f"{self.parameters / 1e6:.1f}M parameters, {self.tokens:,.0f} tokens a step, {self.documents:.1f} documents a row "
            f"(Trainer lets them see each other). {mfu.CONVENTION}. The same FLOPs of the same rows are counted for all."
        )
        said = ", ".join(f"{name} {value['tokens_per_second']:,.0f} tokens/s" for name, value in figures.items())
        good = not failed and len(figures) == loops
        return {"good": good, "said": said, "figures": figures | {"failed": failed}, "table": f"{about}\n\n{records.table(head, rows)}"}
