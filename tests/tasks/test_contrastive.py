"""Embeddings of pairs: the loss is that of the whole global batch at any number of processes, figures of retrieval, what is exported."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from tests import loops
from tests.distributed import run_distributed
from tests.tasks.test_classification import evaluated, ready, write
from trainer.choices import ConfigError
from trainer.distributed import World
from trainer.models.embedding import pair_losses
from trainer.run import RunDir
from trainer.tasks import retrieval

GIVEN = ("task=contrastive", "micro_batch=auto", "task.temperature=0.1")
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TENS = ("ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def pairs(count: int, negatives: bool = False) -> list[dict[str, Any]]:
    """Words and the same words in another order, of different lengths; some with another word at the end as a hard negative."""
    draw, found = np.random.default_rng(0), []
    for number in range(count):
        words = [ONES[number % 9], TENS[number // 9 % 9], *draw.choice(ONES, draw.integers(0, 9))]
        found.append({"anchor": " ".join(words), "positive": " ".join(words[::-1])})
        if negatives and number % 3:
            found[-1]["negative"] = " ".join([*words[1:], "zero"])
    return found


def test_c12_c20_every_rank_sees_the_negatives_of_all_where_state_is_cut(tmp_path):
    """Ragged: 7 pairs on 2 ranks, some with a hard negative."""
    examples = pairs(47, negatives=True)
    given = (*GIVEN, "steps=4", "global_batch=7", "optim.lr=1e-2")
    one = ready(tmp_path, examples[:40], examples[40:], *given, name="one")
    alone = evaluated(loops.single(), str(one))
    paths = [ready(tmp_path, examples[:40], examples[40:], *given, f"strategy={name}", name=name, world=2) for name in ("zero2", "fsdp")]
    for by_rank in run_distributed(one_after_the_other, 2, list(map(str, paths))):
        for found in by_rank:
            assert found["training"], "C19: the mode is restored"
            assert found["figures"] == pytest.approx(alone["figures"], rel=1e-3, abs=1e-4)
    for path in paths:
        assert loops.losses(path) == pytest.approx(loops.losses(one), rel=1e-4)
        assert RunDir(path).placement["micro_batch"] == 4


def one_after_the_other(world: World, paths: list[str]) -> list[dict[str, Any]]:
    return [loops.in_an_engine_of_its_own(evaluated, world, path) for path in paths]


def test_the_loss_is_info_nce_without_wrong_negatives():
    draw = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(5, 3, 4, generator=draw), dim=-1)
    # The second pair's text is the first one's, the fourth has the third one's anchor; the last place is empty.
    names = torch.tensor([[0, 10, 20], [1, 10, -1], [2, 12, 22], [2, 13, -1], [-1, -1, -1]])
    found = pair_losses(texts, names, 0.5)
    candidates = {(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (2, 2)}
    for pair, wrong in enumerate([{(1, 1)}, {(0, 1)}, {(3, 1)}, {(2, 1)}]):
        scores = {place: float(texts[pair, 0] @ texts[place] / 0.5) for place in candidates - wrong}
        expected = np.log(sum(map(np.exp, scores.values()))) - scores[pair, 1]
        assert float(found[pair]) == pytest.approx(expected, rel=1e-5)
    assert found[4] == 0 and torch.isfinite(found).all()


def test_figures_by_hand():
    def unit(*values: float) -> Any:
        return np.array(values, np.float32) / np.linalg.norm(values)

    left, right, up = unit(1, 0, 0), unit(0, 1, 0), unit(0, 0, 1)
    found = retrieval.figures(
        [
            retrieval.Pair(["a", "p"], [left, left]),
            retrieval.Pair(["b", "q"], [left, right]),
            # Of the anchor "a" too, so it is no wrong answer to it; and the same text as the first one's is one candidate.
            retrieval.Pair(["a", "r"], [left, up]),
            retrieval.Pair(["c", "p"], [up, left]),
        ],
        1.0,
    )
    # Places: 1; 2 behind p (r is as far); 1 among q and r, without p; 2 behind r.
    assert found["accuracy_at_1"] == 0.5 and found["accuracy_at_5"] == 1.0 and found["mrr_at_10"] == 0.75
    assert found["eval_loss"] == pytest.approx(np.mean([np.log(1 + 1 / np.e), np.log(2 + np.e), np.log(2), np.log(2 + np.e)]), rel=1e-5)


@pytest.mark.parametrize(("model", "pooling"), [("bert_tiny", "mean"), ("gpt2_tiny", "last")])
def test_it_learns_and_what_is_exported_gives_the_same_embeddings(tmp_path, model, pooling):
    from transformers import AutoModel, AutoTokenizer

    from trainer.cli import main

    examples = pairs(81)
    graded = [{**example, "score": number % 5} for number, example in enumerate(examples[60:])]
    evals = ("evals.graded.source=jsonl", f"evals.graded.path={write(tmp_path / 'graded.jsonl', graded)}")
    given = (*GIVEN, f"model={model}", f"task.pooling={pooling}", "steps=25", "global_batch=16", "optim.lr=5e-3", *evals)
    path = ready(tmp_path, examples[:60], examples[60:], *given)
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    summary, losses = RunDir(path).summary, loops.losses(path)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) and summary["accuracy_at_5"] > 5 / 21
    tokenizer, plain = AutoTokenizer.from_pretrained(path / "model"), AutoModel.from_pretrained(path / "model").eval()

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return F.normalize(hidden.mean(0) if pooling == "mean" else hidden[-1], dim=0)

    cosines = [float(embed(example["anchor"]) @ embed(example["positive"])) for example in graded]
    expected = stats.spearmanr(cosines, [example["score"] for example in graded])[0]
    assert summary["eval_graded_spearman"] == pytest.approx(expected, abs=1e-3)
    asked = write(tmp_path / "new.jsonl", [{"anchor": example["anchor"]} for example in graded])
    assert main(["predict", f"run={path}", f"input={asked}", f"output={tmp_path / 'out.jsonl'}"]) == 0
    for line, example in zip((tmp_path / "out.jsonl").read_text().splitlines(), graded, strict=True):
        assert json.loads(line)["predicted_embedding"] == pytest.approx(embed(example["anchor"]).tolist(), abs=1e-5)
    modules = json.loads((path / "model" / "modules.json").read_text())
    assert [(path / "model" / module["path"]).is_dir() for module in modules] == [True] * 3
    assert json.loads((path / "model" / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 32


def test_what_would_change_the_negatives_is_refused(tmp_path):
    examples = pairs(12)
    with pytest.raises(ConfigError, match=r"micro_batch: 3 with task=contrastive.*all 8 rows.*from 4, the share of each of 2"):
        ready(tmp_path, examples, examples, *GIVEN, "micro_batch=3", world=2)
    with pytest.raises(ConfigError, match=r"data\.columns\.score: example 1 \(.*jsonl:1\) to train on has one"):
        ready(tmp_path, *[[{**example, "score": 1} for example in examples]] * 2, *GIVEN)
    with pytest.raises(ConfigError, match=r"data\.columns\.positive: \['a'\] of example 1 \(.*jsonl:1\); allowed: one text"):
        ready(tmp_path, [{**example, "positive": ["a"]} for example in examples], examples, *GIVEN)
