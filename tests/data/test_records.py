"""Records: JSON lines, JSON arrays and tables come to the same documents; what is broken is told by its place."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.corpora import decoded, files_of, prepared
from trainer.choices import ConfigError
from trainer.data import json_files, parts
from trainer.data.json_files import JsonRecords
from trainer.data.opening import lines_before
from trainer.data.record_sources import Arrow, Columns, Csv, Jsonl, Parquet, Tsv
from trainer.data.segments import Flaw
from trainer.data.sources import OnError, SourceFile
from trainer.data.tokenizers import Pretrained, Train

POEMS = [{"title": f"poem {number}", "lines": [f"first line of {number}", "", "字 second\nline"], "id": number} for number in range(60)]
TEXTS = [f"first line of {number}\n字 second\nline" for number in range(60)]


def jsonl(path, text=None, **settings):
    return Jsonl(path=str(path), columns=Columns(text), processes=1, **settings)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts_of(corpus):
    return sorted(decoded(corpus, "train") + decoded(corpus, "eval"))


def test_jsonl_and_one_array_hold_the_same_documents(tmp_path):
    write_lines(tmp_path / "a.jsonl", POEMS)
    (tmp_path / "pretty.json").write_text(json.dumps(POEMS, indent=2, ensure_ascii=False))
    (tmp_path / "dense.json").write_bytes(b"\xef\xbb\xbf " + json.dumps(POEMS, separators=(",", ":")).encode())
    found = [prepared(jsonl(tmp_path / name, "lines")) for name in ("a.jsonl", "pretty.json", "dense.json")]
    assert [texts_of(corpus) for corpus in found] == [sorted(TEXTS)] * 3
    assert len({corpus.meta["splits"]["eval"]["documents"] for corpus in found}) == 1, "the same documents are held out"


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=30)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)
RECORDS = st.lists(st.fixed_dictionaries({"text": VALUES}), max_size=12)
UNITS = st.sampled_from([1, 100, 1 << 20])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "array.json"


@given(
    records=RECORDS,
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
    unit=st.sampled_from([1, 100, 1 << 20]),
    block=st.integers(1, 40),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_array_is_read_in_blocks_of_any_size(scratch, records, indent, ascii, unit, block):
    raw = json.dumps(records, indent=indent, ensure_ascii=ascii).encode()
    scratch.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_BLOCK", block)
        segments = list(JsonRecords(("text",)).segments(0, SourceFile(str(scratch)), unit))
    lines = [line for segment in segments for line in segment.text.split(b"\n") if line]
    assert [json.loads(line) for line in lines] == records
    assert sum(segment.size for segment in segments) == len(raw)
    places = [line for segment in segments for line in segment.lines or []]
    if indent:
        starts = [number for number, line in enumerate(raw.decode().split("\n"), 1) if line.startswith(" {")]
        assert places == starts


@pytest.mark.parametrize(
    ("records", "text", "expected"),
    [
        ([{"text": "a", "title": "b"}], None, "a"),
        ([{"body": "a", "id": 3, "tags": []}], None, "a"),
        ([{"meta": {"body": "a"}, "meta.body": "b"}], "meta.body", "b"),
        ([{"meta": {"body": "a"}, "x": "b"}], ["x", "meta.body"], "b\na"),
        ([{"turns": [{"say": "a"}, {"say": None}, {"say": ["b", "c"]}]}], "turns.say", "a\nb\nc"),
    ],
)
def test_columns_are_names_paths_and_lists(tmp_path, records, text, expected):
    from trainer.data.columns import json_columns, text_columns

    file = SourceFile(str(write_lines(tmp_path / "a.jsonl", records)))
    columns = text_columns([file], [text] if isinstance(text, str) else text, json_columns)
    [segment] = JsonRecords(tuple(columns)).segments(0, file, 100)
    assert JsonRecords(tuple(columns)).documents(segment).texts == [expected.encode()]


def test_b14_a_missing_column_names_the_columns_there_are(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"title": "t", "paragraphs": ["p"], "meta": {"id": 3}}])
    with pytest.raises(ConfigError, match=rf"'paragraph' is no column of {path}; its columns: .*meta\.id.*; did you mean 'paragraphs'\?"):
        prepared(jsonl(path, "paragraph"))
    with pytest.raises(ConfigError, match=r"missing, and .*no column 'text'; columns with text are title, paragraphs; give data"):
        prepared(jsonl(path))
    write_lines(tmp_path / "b.jsonl", [{"title": "t"}])
    with pytest.raises(ConfigError, match=rf"'paragraphs' is no column of {tmp_path}/b\.jsonl"):
        prepared(jsonl(tmp_path, "paragraphs"))


def write_table(folder, kind, rows):
    """The rows (objects of equal keys) as a file of a kind."""
    import csv

    import pyarrow as pa
    from pyarrow import feather, parquet

    path = folder / f"a.{kind}"
    table = pa.Table.from_pylist(rows)
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="") as stream:
            quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if kind == "tsv" else {}
            writer = csv.DictWriter(stream, list(rows[0]), **quoting)
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        parquet.write_table(table, path, row_group_size=17)
    elif kind == "feather":
        feather.write_feather(table, path, chunksize=17)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=17)
    return path


TABLES = {"csv": Csv, "tsv": Tsv, "parquet": Parquet, "feather": Arrow, "arrow": Arrow}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_hold_the_same_documents_as_json_lines(tmp_path, kind):
    texts = [text.replace("\n", " ") if kind == "tsv" else text for text in TEXTS]
    rows = [{"id": number, "body": f'He said: "{text}", twice', "title": f"t{number}"} for number, text in enumerate(texts)]
    path = write_table(tmp_path, kind, rows)
    for wanted in ("body", ["title", "body"]):
        lines = write_lines(tmp_path / "lines.jsonl", rows)
        table, plain = TABLES[kind](path=str(path), columns=Columns(wanted), processes=1), jsonl(lines, wanted)
        mine, theirs = prepared(table), prepared(plain)
        for split in ("train", "eval"):
            assert decoded(mine, split) == decoded(theirs, split) != []
    layout = TABLES[kind](path=str(path), columns=Columns("body")).layout([SourceFile(str(path))])
    for unit in (1, 1000, 1 << 20):
        segments = list(layout.segments(0, SourceFile(str(path)), unit))
        assert sum(segment.size for segment in segments) == path.stat().st_size
        assert [text.decode() for segment in segments for text in layout.documents(segment).texts] == [row["body"] for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow"])
def test_cells_are_lists_structs_dictionaries_and_bytes(tmp_path, kind):
    rows = [{"a": ["x", None, "y"], "b": {"c": ["z"], "d": 1}, "e": [{"f": "u"}, {"f": None}], "g": b"bytes", "a.b": "dot"}] * 3
    file = SourceFile(str(write_table(tmp_path, kind, rows)))
    layout = TABLES[kind](path=file.path, columns=Columns(["a", "b.c", "e.f", "g", "a.b"])).layout([file])
    [segment] = layout.segments(0, file, 1 << 20)
    assert layout.documents(segment).texts == [b"x\ny\nz\nu\nbytes\ndot"] * 3


def test_b14_tables_name_their_columns_and_types(tmp_path):
    rows = [{"id": number, "title": f"t{number}", "body": "text"} for number in range(30)]
    for kind, source in TABLES.items():
        path = write_table(tmp_path, kind, rows)
        with pytest.raises(ConfigError, match=rf"'bodi' is no column of {path}; its columns: id, title, body; did you mean 'body'\?"):
            source(path=str(path), columns=Columns("bodi")).layout([SourceFile(str(path))])
        with pytest.raises(ConfigError, match="no column 'text'; columns with text are title, body; give data"):
            source(path=str(path)).layout([SourceFile(str(path))])
    with pytest.raises(ConfigError, match=r"'id' of .* holds int64, not text; columns with text: title, body"):
        Parquet(path=str(tmp_path), columns=Columns("id")).layout([SourceFile(str(tmp_path / "a.parquet"))])


@pytest.mark.parametrize(
    ("row", "message", "reason"),
    [
        ("a,b,c,d\n", r":83: a row of 4 fields under a header of 2; quote fields that hold ','", "rows of another length"),
        ('a,"b" c\n', r":83: broken row: ',' expected after '\"'", "broken rows"),
        ("a,\udcfc\n", r":83: byte 0xfc is not UTF-8", "lines that are not UTF-8"),
    ],
)
def test_b07_a_broken_row_names_its_line(tmp_path, row, message, reason):
    good = "".join(f'{number},"two\nlines of {number}"\n' for number in range(40))
    path = tmp_path / "a.csv"
    path.write_bytes(("id,text\n\n" + good + row + good).encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=f"{path}{message}.*data\\.on_error=skip"):
        prepared(Csv(path=str(path), processes=1))
    corpus = prepared(Csv(path=str(path), processes=1, on_error=OnError.skip))
    assert corpus.meta["dropped"] == {reason: 1} and len(texts_of(corpus)) == 80


def test_b07_a_quotation_mark_that_is_never_closed_is_told_where_it_opens(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "fine\n" * 30 + '"open\n' + "lost\n" * 30)
    with pytest.raises(ConfigError, match=r"a\.csv:32: unexpected end of data: a quotation mark is opened here.*data\.quote=''"):
        prepared(Csv(path=str(tmp_path / "a.csv"), on_error=OnError.skip))


def test_b07_a_damaged_parquet_file_is_named(tmp_path):
    path = write_table(tmp_path, "parquet", [{"text": text} for text in TEXTS])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=rf"{path}: cannot be read .*; it is damaged"):
        prepared(Parquet(path=str(path)))


def test_e2e_and_chinese_poems_as_they_are(data_folder):
    pairs = prepared(
        Csv(path=str(data_folder / "e2e_nlg" / "devset.csv"), columns=Columns("ref"), processes=1), tokenizer=Train(vocab_size=500)
    )
    assert sum(pairs.meta["splits"][split]["documents"] for split in ("train", "eval")) == 4672
    poems = prepared(jsonl(data_folder / "zh_poetry" / "*.json", "paragraphs"), tokenizer=Train(vocab_size=1000))
    originals = [poem for path in sorted((data_folder / "zh_poetry").glob("*.json")) for poem in json.loads(path.read_text())]
    assert texts_of(poems) == sorted("\n".join(filter(None, poem["paragraphs"])) for poem in originals if any(poem["paragraphs"]))


BROKEN = b'{"text": "gr\xc3\xbcn" "x"}\n'


@pytest.mark.parametrize(
    ("line", "message", "reason"),
    [
        (BROKEN, r":41:18: broken JSON: .*; mend the line", "lines that are not JSON"),
        (b'{"text": "\xfc"}\n', r":41:11: byte 0xfc is not UTF-8, at offset 1480;", "lines that are not UTF-8"),
        (b'{"text": 3.5}\n', r":41: a number \(3\.5\), not text", "records whose text is of another type"),
        (b'["text"]\n', r":41: a list, not an object; write one object a line, such as \{\"text\"", "lines that are no object"),
        (b'{"text": "\\ud800"}\n', r":41: '\\ud800' is half a character", "records with half characters"),
    ],
)
def test_b07_a_broken_record_names_file_line_and_byte(tmp_path, line, message, reason):
    good = b"".join(b'{"text": "a good record, number %d"}\n' % number for number in range(40))
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + line + good)
    with pytest.raises(ConfigError, match=f"{path}{message}.*data\\.on_error=skip"):
        prepared(jsonl(path), tokenizer=Train(vocab_size=300))
    corpus = prepared(jsonl(path, on_error=OnError.skip))
    assert corpus.meta["dropped"] == {reason: 1} and len(texts_of(corpus)) == 80


def test_b07_a_broken_array_names_the_place(tmp_path):
    text = json.dumps(POEMS, indent=1, ensure_ascii=False)
    at = text.index('"poem 30"')
    path = tmp_path / "a.json"
    path.write_text(text[:at] + "?" + text[at:])
    with pytest.raises(ConfigError, match=rf"{path}:{1 + text[:at].count(chr(10))}:12: broken JSON: Expecting value; .*it is one array"):
        prepared(jsonl(path, "lines", on_error=OnError.skip))
    path.write_text(text[: at + 3])
    with pytest.raises(ConfigError, match="broken JSON: Unterminated string"):
        prepared(jsonl(path, "lines"))


def test_records_without_text_are_dropped_and_counted(tmp_path):
    records = [*({"text": text} for text in TEXTS), {"text": None}, {"text": ""}, {"text": " \n"}, {"text": []}, {"other": "x"}]
    corpus = prepared(jsonl(write_lines(tmp_path / "a.jsonl", records)))
    assert corpus.meta["dropped"] == {"records without text": 5}
    assert texts_of(corpus) == sorted(TEXTS)


@pytest.mark.parametrize("records", [["one\ntwo\nthree\nfour\nfive"], ["alone " * 20], TEXTS[:5]])
def test_few_records_hold_out_the_tail(tmp_path, records):
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in records])
    corpus = prepared(jsonl(path, held_out=0.2))
    train, held_out = ("".join(decoded(corpus, split)) for split in ("train", "eval"))
    assert train + held_out == "".join(records)
    assert 0 < len(held_out.encode()) <= 0.2 * len("".join(records).encode()) + 1


def test_b06_files_without_records_are_told(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"data\.path=.*nothing to train on; 1 files read, documents: 0 kept for train"):
        prepared(jsonl(tmp_path / "a.json"))


@pytest.mark.parametrize("kind", TABLES)
def test_b06_tables_without_text_are_told(tmp_path, kind):
    path = write_table(tmp_path, kind, [{"text": " ", "id": 1}] * 3)
    with pytest.raises(ConfigError, match=rf"data\.path={path}: nothing to train on; 1 files read, .*dropped: 3 records without text"):
        prepared(TABLES[kind](path=str(path), processes=1, columns=Columns("text")), tokenizer=Pretrained(path=str(trained(tmp_path))))


def test_the_result_does_not_depend_on_unit_borders(tmp_path):
    file = SourceFile(str(write_lines(tmp_path / "a.jsonl", POEMS)))
    layout = JsonRecords(("lines",))
    expected = [text.encode() for text in TEXTS]
    for unit in (1, 100, 1 << 20):
        segments = list(layout.segments(0, file, unit))
        assert [text for segment in segments for text in layout.documents(segment).texts] == expected
        assert [at for segment in segments for at, text in layout.located(segment) if not isinstance(text, Flaw)] == list(range(1, 61))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("places", [(1,), (700, 701, 2500), (3000, 3500, 3900)])
def test_a_large_file_is_read_in_stretches(tmp_path, kind, places):
    rows = [{"text": text} for text in TEXTS]
    path = write_lines(tmp_path / "a.jsonl", rows) if kind == "jsonl" else write_table(tmp_path, kind, rows)
    layout = (jsonl(path) if kind == "jsonl" else Parquet(path=str(path))).layout([SourceFile(str(path))])
    assert layout.divisible(SourceFile(str(path)))
    size = path.stat().st_size
    borders = [0, *(place for place in places if place < size), size]
    files = [SourceFile(str(path), start=start, stop=stop) for start, stop in itertools.pairwise(borders)]
    segments = [segment for file in files for segment in layout.segments(0, file, 300)]
    assert [text.decode() for segment in segments for text in layout.documents(segment).texts] == TEXTS
    assert sum(segment.size for segment in segments) == size
    numbers = [lines_before(str(path), segment.after) + at for segment in segments for at, _ in layout.located(segment)]
    assert numbers == list(range(1, 61))


def test_b07_a_broken_record_of_a_later_part_names_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 400)
    good = [json.dumps({"text": f"a good record, number {number}"}) for number in range(80)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*good[:63], "broken", *good[63:]]))
    with pytest.raises(ConfigError, match=rf"{path}:64:1: broken JSON"):
        prepared(jsonl(path), tokenizer=Pretrained(path=str(trained(tmp_path))))


def trained(folder):
    """A tokenizer that needs none of the text."""
    from trainer.data.subwords import train_tokenizer

    train_tokenizer("bpe", 300, False, False, lambda: iter(["some text"])).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def test_repeated_documents_are_dropped_counted_and_independent_of_processes(tmp_path, monkeypatch):
    from trainer.data import pipeline

    monkeypatch.setattr(pipeline, "UNIT_BYTES", 1 << 10)
    texts = [f"text {number % 70} " + "of many words" * (number % 5) for number in range(200)]
    for name, part in (("a", texts[:90]), ("b", texts[90:])):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": text} for text in part])
    found = []
    for processes in (1, 2):
        monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / f"cache{processes}"))
        corpus = prepared(Jsonl(path=str(tmp_path / "*.jsonl"), processes=processes, deduplicate=True))
        assert texts_of(corpus) == sorted(set(texts)) and corpus.meta["dropped"] == {"documents that repeat another": 130}
        found.append(files_of(corpus.path))
    assert found[0] == found[1]
    again = prepared(Jsonl(path=str(tmp_path / "*.jsonl"), processes=1, deduplicate=True), tokenizer=Train(vocab_size=350))
    assert texts_of(again) == sorted(set(texts)), "from what an earlier prepare found"
