"""Figures of predictions beside the truth, by the libraries that define them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.tasks.labelled import Ints, Score


def single_label(truth: Ints, predicted: Ints, labels: Sequence[str]) -> Score:
    """By scikit-learn; of two labels, F1 is that of the second. Its means over labels are of those that occur, in truth or prediction."""
    from sklearn import metrics

    every = range(len(labels))
    figures = {"accuracy": metrics.accuracy_score(truth, predicted), "mcc": metrics.matthews_corrcoef(truth, predicted)}
    figures |= {f"f1_{how}": metrics.f1_score(truth, predicted, average=how, zero_division=0) for how in ("macro", "weighted")}
    if len(labels) == 2:
        figures["f1"] = metrics.f1_score(truth, predicted, zero_division=0)
    report = metrics.classification_report(truth, predicted, labels=every, target_names=labels, output_dict=True, zero_division=0)
    confusion = {"labels": list(labels), "counts": metrics.confusion_matrix(truth, predicted, labels=every).tolist()}
    return Score({key: float(value) for key, value in figures.items()}, {"by_label": report, "confusion": confusion})


def micro(truth: Ints, predicted: Ints, counted: Sequence[int]) -> dict[str, float]:
    """Precision, recall and F1 of all examples together by scikit-learn, of the labels that are counted."""
    from sklearn import metrics

    if not len(counted):
        return {}
    found = metrics.precision_recall_fscore_support(truth, predicted, labels=counted, average="micro", zero_division=0)
    return {f"{name}_micro": float(value) for name, value in zip(("precision", "recall", "f1"), found[:3], strict=True)}


def multi_label(truth: Ints, predicted: Ints, labels: Sequence[str]) -> Score:
    """By scikit-learn; accuracy: all labels of an example are right. truth, predicted: `[examples, labels]` zeros and ones."""
    from sklearn import metrics

    figures = {"accuracy": metrics.accuracy_score(truth, predicted)}
    figures |= {f"f1_{how}": metrics.f1_score(truth, predicted, average=how, zero_division=0) for how in ("micro", "macro", "weighted")}
    report = metrics.classification_report(truth, predicted, target_names=labels, output_dict=True, zero_division=0)
    return Score({key: float(value) for key, value in figures.items()}, {"by_label": report})


def tags(truth: Sequence[list[str]], predicted: Sequence[list[str]], labels: Sequence[str]) -> Score:
    """Of tags such as B-PER: of whole entities, by seqeval's rules, as conlleval has them; of others by scikit-learn, a word at a time.

    BILOU and BMES are IOBES by other letters, which seqeval does not know.
    """
    flat = [np.array([tag for sentence in side for tag in sentence]) for side in (truth, predicted)]
    figures = {"accuracy": float((flat[0] == flat[1]).mean()) if len(flat[0]) else 0.0}
    entities = [label for label in labels if label[:1] in "BIES" + "".join(_IOBES) and label[1:2] == "-"]
    if entities and {*labels} <= {*entities, "O"}:
        from seqeval import metrics

        truth, predicted = ([[_iobes(tag) for tag in tags] for tags in side] for side in (truth, predicted))
        named = {"precision": metrics.precision_score, "recall": metrics.recall_score, "f1": metrics.f1_score}
        figures |= {name: float(score(truth, predicted, zero_division=0)) for name, score in named.items()}
        report = metrics.classification_report(truth, predicted, output_dict=True, zero_division=0)
    else:
        from sklearn import metrics

        figures["f1_macro"] = float(metrics.f1_score(*flat, average="macro", zero_division=0))
        report = metrics.classification_report(*flat, labels=labels, output_dict=True, zero_division=0)
    return Score(figures, {"by_label": {name: _plain(row) for name, row in report.items()}})


# Letters of BILOU and BMES that IOBES has others for: last, unit, middle.
_IOBES = {"L": "E", "U": "S", "M": "I"}


def _iobes(tag: str) -> str:
    return _IOBES.get(tag[:1], tag[:1]) + tag[1:]


def _plain(row: Any) -> Any:
    return {key: float(value) for key, value in row.items()} if isinstance(row, dict) else float(row)


def regression(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> Score:
    """Mean squared and absolute error; correlations, which are 0 where either side is constant."""
    from scipy import stats

    error = predicted - truth
    constant = len(truth) < 2 or truth.std() == 0 or predicted.std() == 0
    pearson, spearman = (0.0, 0.0) if constant else (stats.pearsonr(truth, predicted)[0], stats.spearmanr(truth, predicted)[0])
    return Score({"mse": float((error**2).mean()), "mae": float(abs(error).mean()), "pearson": float(pearson), "spearman": float(spearman)})


class _Characters:
    """A tokenizer for rouge-score, whose own knows Latin letters and digits alone."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text if not character.isspace()]


def is_cjk(texts: Sequence[str]) -> bool:
    """Whether most of the letters are Chinese, Japanese or Korean, which are written without blanks."""
    letters = [character for text in texts for character in text if character.isalpha()]
    return 2 * sum("\u2e80" <= character <= "\ud7ff" for character in letters) > len(letters)


def texts(references: Sequence[Sequence[str]], written: Sequence[str]) -> dict[str, float]:
    """sacreBLEU's BLEU and chrF, and rouge-score's F-measures with stems, of the best reference each, all from 0 to 100; and the share
    that is a reference to the letter. Chinese, Japanese and Korean are scored by characters.

    references: one or more of each text. written: what a model wrote of it.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    cjk = is_cjk([text for several in references for text in several])
    most = max(map(len, references))
    # By place of the reference; None where an example has fewer.
    streams = [[several[place] if place < len(several) else None for several in references] for place in range(most)]
    figures = {"bleu": sacrebleu.corpus_bleu(written, streams, tokenize="zh" if cjk else "13a").score}  # type: ignore[arg-type]
    figures["chrf"] = sacrebleu.corpus_chrf(written, streams).score  # type: ignore[arg-type]
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=_Characters()) if cjk else RougeScorer(kinds, use_stemmer=True)
    found = [scorer.score_multi(several, text) for several, text in zip(references, written, strict=True)]
    figures |= {kind: 100 * float(np.mean([one[kind].fmeasure for one in found])) for kind in kinds}
    right = [text in several for several, text in zip(references, written, strict=True)]
    return {**{name: float(value) for name, value in figures.items()}, "exact_match": float(np.mean(right))}
