"""Data sets by way of `datasets`: folders that it wrote, folders of data files, and what is told of a hub out of reach."""

from __future__ import annotations

import pytest

from tests.data.corpora import decoded, prepared
from trainer.choices import ConfigError
from trainer.data.record_sources import Columns, Hub, Jsonl
from trainer.models.bert import BERT
from trainer.tasks.classification import Classification
from trainer.tasks.token_classification import TokenClassification

ROWS = [{"text": f"text number {number}", "label": number % 2} for number in range(60)]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, with a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return datasets


def test_saved_data_sets_are_read_where_they_lie(datasets, tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=whole.select(range(50)), validation=whole.select(range(50, 60))).save_to_disk(tmp_path / "splits")
    whole.shuffle(seed=0).select(range(40)).save_to_disk(tmp_path / "one")
    given = prepared(Hub(path=str(tmp_path / "splits"), eval="validation", processes=1))
    assert decoded(given, "train") == [row["text"] for row in ROWS[:50]]
    assert decoded(given, "eval") == [row["text"] for row in ROWS[50:]]
    cut = prepared(Hub(path=str(tmp_path / "one"), processes=1))
    expected = [row["text"] for row in whole.shuffle(seed=0).select(range(40))]
    assert sorted(decoded(cut, "train") + decoded(cut, "eval")) == sorted(expected)
    assert cut.meta["splits"]["eval"]["documents"] > 0 and cut.meta["source"] == {}


def test_a_folder_of_data_files_equals_the_files(datasets, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    datasets.Dataset.from_list(ROWS[:50]).to_json(folder / "train.jsonl")
    datasets.Dataset.from_list(ROWS[50:]).to_json(folder / "test.jsonl")
    mine = prepared(Hub(path=str(folder), eval="test", processes=1))
    theirs = prepared(Jsonl(train=str(folder / "train.jsonl"), eval=str(folder / "test.jsonl"), processes=1))
    for split in ("train", "eval"):
        assert decoded(mine, split) == decoded(theirs, split) != []
    with pytest.raises(ConfigError, match=r"'tset' is no split of .*files; its splits: train, test; did you mean 'test'\?"):
        Hub(path=str(folder), eval="tset").listing()
    with pytest.raises(ConfigError, match=r"'label' of .* holds int64, not text; columns with text: text"):
        prepared(Hub(path=str(folder), columns=Columns("label")))


def test_b13_a_data_set_out_of_reach_tells_where_it_was_looked_for(datasets, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"data\.path: 'nobody/nothing' is no folder here, and was not found on https://huggingface\.co or in the caches .*"
        r"Without a network: .*hf download --repo-type dataset nobody/nothing --local-dir FOLDER",
    ):
        Hub(path="nobody/nothing").listing()
    with pytest.raises(ConfigError, match=r"data\.path: no folder .*absent; "):
        Hub(path=str(tmp_path / "absent")).listing()


def test_s09_formats_that_unpack_or_unpickle_are_refused(datasets, tmp_path):
    (tmp_path / "data.tar").write_bytes(b"no archive is opened")
    with pytest.raises(ConfigError, match=r"read by the builder 'webdataset'; allowed: text, JSON, CSV, Parquet and Arrow"):
        Hub(path=str(tmp_path)).listing()


@pytest.mark.parametrize("given", [{"path": ""}, {"path": "a", "train": "train[:10%]"}, {"path": "a", "eval": "train"}])
def test_hub_fields_that_mean_nothing_are_refused(given):
    with pytest.raises(ConfigError, match=r"data\.(path|train|eval): "):
        Hub(**given)


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_numbers_of_classes_are_read_by_their_names(datasets, tmp_path, kind):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"]),
         "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"])), "tokens": datasets.Sequence(datasets.Value("string"))}
    )  # fmt: skip
    rows = [{"text": f"text {number}", "label": number % 2, "tokens": ["a", f"b{number}"], "tags": [0, number % 2]} for number in range(40)]
    whole = datasets.Dataset.from_list(rows, features=features)
    if kind == "saved":
        whole.save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        whole.to_parquet(tmp_path / "set" / "train.parquet")
    hub = Hub(path=str(tmp_path / "set"), processes=1)
    found = prepared(hub, task=Classification(), model=BERT())
    assert found.learned["labels"] == ["bad", "good"] and found.learned["problem"] == "single_label"
    assert all(example["label"] == ["bad", "good"][int(example["text"].split()[1]) % 2] for example in found.records("train"))
    assert prepared(hub, task=TokenClassification(), model=BERT()).learned["labels"] == ["B-X", "O"]
    unlabelled = datasets.Dataset.from_list([{**row, "label": -1} for row in rows], features=features)
    unlabelled.save_to_disk(tmp_path / "test")
    with pytest.raises(ConfigError, match="nothing in column 'label'"):
        prepared(Hub(path=str(tmp_path / "test"), processes=1), task=Classification(), model=BERT())
