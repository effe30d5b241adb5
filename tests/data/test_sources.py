from __future__ import annotations

import gc
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from fedsa.data.reading.base import Wanted
from fedsa.data.reading.paths import is_local
from fedsa.data.sources import class_names, load_rows, require_columns
from fedsa.errors import DataError
from fedsa.packages import parts
from fedsa.recipe import DataSettings

CSV = "text,label\nfine,1\nbad,0\n"
JSONL = '{"text": "fine", "label": 1}\n{"text": "bad", "label": 0}\n'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def settings(path: Path | str, kind: str = "iid", **more: Any) -> DataSettings:
    partition = {"kind": kind, **({} if kind == "files" else {"clients": 2})}
    return DataSettings(path=str(path), partition=partition, **more)


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    yield
    gc.collect()  # a file left open warns here, in the test that left it


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_formats(tmp_path: Path) -> None:
    write(
        tmp_path,
        a__csv=CSV,
        a__tsv=CSV.replace(",", "\t"),
        a__jsonl=JSONL,
        a__json=f"[{JSONL.strip().replace(chr(10), ',')}]",
    )
    datasets.Dataset.from_dict({"text": ["fine", "bad"], "label": [1, 0]}).to_parquet(tmp_path / "a.parquet")
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write(CSV)
    before = sorted(entry.name for entry in tmp_path.iterdir())
    for name in before:
        rows = load_rows(settings(tmp_path / name))
        assert rows.table["text"][:] == ["fine", "bad"], name
        assert list(map(int, rows.table["label"][:])) == [1, 0], name
        rows = load_rows(settings(tmp_path / name), Wanted(texts=frozenset({"label"})))
        assert rows.table["label"][:] == ["1", "0"], name
        assert rows.validation is rows.test is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    assert len(before) == 6


def test_folder_in_the_hubs_format(tmp_path: Path) -> None:
    write(tmp_path, train__csv=CSV, test__csv=CSV + "so so,0\n")
    rows = load_rows(settings(tmp_path, test_split="test", split="train[:1]"))
    assert len(rows.table) == 1
    assert rows.test is not None
    assert len(rows.test) == 3
    readme = (
        "---\nconfigs:\n- config_name: one\n  data_files: p/*.jsonl\n- config_name: two\n  data_files: train.csv\n---\n"
    )
    write(tmp_path / "p", x__jsonl=JSONL * 2)
    write(tmp_path, README__md=readme)
    assert len(load_rows(settings(tmp_path, name="one")).table) == 4
    with pytest.raises(DataError, match="has no configuration 'three': known: one, two"):
        load_rows(settings(tmp_path, name="three"))


def test_bars_and_logs_are_left_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    load_rows(settings(write(tmp_path, a__csv=CSV) / "a.csv"))
    with pytest.raises(DataError):
        load_rows(settings(write(tmp_path, b__csv="a,b\n1,2\n1,2,3\n") / "b.csv"))
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == verbosity
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", b"", "is empty; it needs a header and rows"),
        ("a.csv", b"text,label\n", "split 'train' has no rows"),
        ("a.csv", b"a,b\n1,2\n1,2,3,4\n", "a.csv, line 3: 4 fields, but the header has 2"),
        ("a.csv", b"text,label\n\0\0\0x,1\n", "holds bytes of 0"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl, line 2 is not JSON"),
        ("a.parquet", b"no parquet", "cannot be read: Parquet magic bytes"),
        ("a.pkl", b"x", r"files of this kind are not read; known endings: \.csv, \.tsv"),
        ("a", b"x", "files of this kind are not read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text) as caught:
        load_rows(settings(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no data files"):
        load_rows(settings(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"texts has no data files \(there is a\.txt\)"):
        load_rows(settings(write(tmp_path / "texts", a__txt="hello")))
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"was written by save_to_disk.*to_parquet"):
        load_rows(settings(tmp_path / "saved"))
    write(tmp_path / "mixed", a__csv=CSV, b__csv=CSV.replace("label", "class"))
    with pytest.raises(DataError, match=r"(?s)mixed: the files must have .*'label' is missing from b\.csv"):
        load_rows(settings(tmp_path / "mixed"))


def test_missing_paths(tmp_path: Path) -> None:
    write(tmp_path, reviews__csv=CSV, other__csv=CSV)
    with pytest.raises(DataError, match=r"no file or folder .*/review\.csv; in .* there is reviews\.csv"):
        load_rows(settings(tmp_path / "review.csv"))
    with pytest.raises(DataError, match=r"no file or folder .*/zzz/q; .* has other\.csv, reviews\.csv"):
        load_rows(settings(tmp_path / "zzz" / "q"))


def test_hub_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def fail(error: Exception) -> None:
        def build(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset_builder", build)

    fail(ConnectionError("Couldn't reach 'a/b' on the Hub"))
    with pytest.raises(
        DataError, match=r"(?s)no data set 'a/b': there is no such file or folder in .*, and the hub could not"
    ):
        load_rows(settings("a/b"))
    fail(datasets.exceptions.DatasetNotFoundError("gone"))
    with pytest.raises(
        DataError, match=r"there is no such file or folder.*the hub has no such data set, or it needs a login"
    ):
        load_rows(settings("a/b", revision="main"))


@pytest.mark.parametrize("path", ["./a", "a/b/c", "data.csv", "/none/a", "~nobody-here/x"])
def test_paths_never_reach_the_hub(path: str) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        is_local(path)


def test_splits(tmp_path: Path) -> None:
    write(tmp_path, train__csv=CSV, test__csv=CSV)
    with pytest.raises(DataError, match=r"no split 'dev' .*; the splits are: train, test"):
        load_rows(settings(tmp_path, validation_split="dev"))
    with pytest.raises(DataError, match=r"data.revision goes with hub data only"):
        load_rows(settings(tmp_path, revision="main"))
    with pytest.raises(DataError, match=r"data.name goes with a folder or hub data"):
        load_rows(settings(tmp_path / "train.csv", name="x"))


def test_a_file_or_folder_per_client(tmp_path: Path) -> None:
    write(tmp_path, ana__csv=CSV, ben__jsonl=JSONL, README__md="notes", _hidden="")
    (tmp_path / "_hidden").rename(tmp_path / ".hidden")
    write(tmp_path / "cleo", train__csv="text,label\nok,1.0\n")
    rows = load_rows(settings(tmp_path, "files"), Wanted(texts=frozenset({"label"})))
    assert rows.table["client"][:] == ["ana"] * 2 + ["ben"] * 2 + ["cleo"]
    assert rows.table["label"][:] == ["1", "0", "1", "0", "1.0"]


def test_clients_with_splits_of_their_own(tmp_path: Path) -> None:
    for client in ("ana", "ben"):
        write(tmp_path / client, train__csv=CSV, test__csv=CSV)
    rows = load_rows(settings(tmp_path, "files", test_split="test"))
    assert rows.test is not None
    assert rows.test["client"][:] == ["ana", "ana", "ben", "ben"]


def test_client_files_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path, a__csv=CSV, b__csv="text,note\nx,y\n", c__csv="label,text\nbad,x\n", d__csv="label\n1\n")
    with pytest.raises(DataError) as caught:
        load_rows(settings(tmp_path, "files"), Wanted(frozenset({"text", "label"}), numbers=frozenset({"label"})))
    text = str(caught.value)
    assert "column 'text' is missing from d.csv" in text
    assert "column 'label' is missing from b.csv" in text
    assert "column 'label' has several types: int64 in a.csv, d.csv; string in c.csv" in text
    assert "other columns there: note" in text


@pytest.mark.parametrize(
    ("texts", "text"),
    [
        ({"README__md": ""}, "has no file or sub-folder for a client"),
        ({"a__csv": CSV, "a__jsonl": JSONL}, r"a\.csv and a\.jsonl would both be client 'a'; rename one"),
        ({"a__csv": CSV, "b__docx": ""}, r"no client can be read from b\.docx"),
        ({"a__csv": "text,client\nx,someone\n"}, "has a column 'client' of its own that says 'someone' and not 'a'"),
        ({"a__csv": CSV, "b__csv": ""}, r"b\.csv is empty"),
    ],
)
def test_bad_client_folders(tmp_path: Path, texts: dict[str, str], text: str) -> None:
    with pytest.raises(DataError, match=text):
        load_rows(settings(write(tmp_path, **texts), "files"))


def test_kind_files_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is one file; partition.kind = 'files' needs a folder"):
        load_rows(settings(write(tmp_path, a__csv=CSV) / "a.csv", "files"))
    with pytest.raises(DataError, match="needs a local folder"):
        load_rows(settings("part:sentiment", "files"))


def test_the_same_client_column_is_fine(tmp_path: Path) -> None:
    rows = load_rows(settings(write(tmp_path, a__csv="text,client\nx,a\ny,a\n"), "files"))
    assert rows.table["client"][:] == ["a", "a"]


SENTIMENT = {
    "amazonReviewSnippets_GroundTruth.txt": "1_1\t-0.9\tbad &amp; ugly\r\n1_2\t0.4\tneutral\r\n12_1\t0.5\tgood\r\n",
    "movieReviewSnippets_GroundTruth.txt": "1\t2.5\tgreat\x85 film\r\n",
    "nytEditorialSnippets_GroundTruth.txt": "3_9\t-0.5\tsad\r\n",
    "tweets_GroundTruth.txt": "7\t3\tI &lt;3 it\r\n",
}


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in SENTIMENT.items():
        (tmp_path / name).write_bytes(text.encode())
    monkeypatch.setattr(parts, "part_folder", lambda name, on_progress=None: tmp_path)
    return tmp_path


def test_sentiment(part: Path) -> None:
    table = load_rows(settings("part:sentiment")).table
    assert table["text"][:] == ["bad & ugly", "good", "great\x85 film", "sad", "I <3 it"]
    assert table["label"][:] == ["negative", "positive", "positive", "negative", "positive"]
    assert table["domain"][:] == ["amazon", "amazon", "movie", "nyt", "tweets"]
    assert table["document"][:] == ["amazon-1", "amazon-12", "movie-1", "nyt-3", "tweets-7"]


def test_bad_parts(part: Path) -> None:
    with pytest.raises(DataError, match=r"no packaged data set 'sentimnt': did you mean 'sentiment'\?"):
        load_rows(settings("part:sentimnt"))
    with pytest.raises(DataError, match="no split 'test'; the splits are: train"):
        load_rows(settings("part:sentiment", test_split="test"))
    with pytest.raises(DataError, match=r"data\.name goes with"):
        load_rows(settings("part:sentiment", name="x"))
    tweets = part / "tweets_GroundTruth.txt"
    tweets.write_text("7\thappy\ttext\n")
    with pytest.raises(DataError, match="line 1: expected id, rating and text between tabs"):
        load_rows(settings("part:sentiment"))
    tweets.unlink()
    with pytest.raises(DataError, match=r"cannot read .*the part is damaged"):
        load_rows(settings("part:sentiment"))


def test_squad_shifts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "question": "Who?",
        "id": "1",
        "answers": [{"text": "Ann", "answer_start": 0}, {"text": "A", "answer_start": 0}],
    }
    passages = [{"context": "Ann was here.", "qas": [asked, asked]}, {"context": "Ann was there.", "qas": [asked]}]
    for name in ("amazon_reviews_v1.0", "new_wiki_v1.0", "nyt_v1.0", "reddit_v1.0", "squaddev_v1.1"):
        content = {"data": [{"paragraphs": passages[:1]}, {"paragraphs": passages[1:]}], "version": "1"}
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(parts, "part_folder", lambda name, on_progress=None: tmp_path)
    table = load_rows(settings("part:squad-shifts")).table
    assert table["document"][:4] == ["amazon-0", "amazon-0", "amazon-1", "new_wiki-0"]
    assert sorted(set(table["domain"][:])) == ["amazon", "new_wiki", "nyt", "reddit", "squad"]
    assert table[2]["context"] == "Ann was there."
    assert table[0]["answers"] == {"text": ["Ann", "A"], "answer_start": [0, 0]}
    (tmp_path / "nyt_v1.0.json").write_text('{"data": [{}]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot read .*nyt_v1\.0\.json: 'paragraphs'; the part is damaged"):
        load_rows(settings("part:squad-shifts"))


def test_newsgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "Category\tText\nd\tstring\nclass\t\n\n"
    (tmp_path / "20newsgroups-train.tab").write_text(
        f"{header}sci.space\tthe moon\nsci.med\ta pill\n", encoding="utf-8"
    )
    (tmp_path / "20newsgroups-test.tab").write_text(f"{header}sci.med\tpills\n", encoding="utf-8")
    monkeypatch.setattr(parts, "part_folder", lambda name, on_progress=None: tmp_path)
    rows = load_rows(settings("part:newsgroups", test_split="test"))
    assert rows.table["label"][:] == ["sci.space", "sci.med"]
    assert rows.test is not None
    assert rows.test[0] == {"label": "sci.med", "text": "pills"}
    with pytest.raises(DataError, match="no split 'validation'; the splits are: train, test"):
        load_rows(settings("part:newsgroups", test_split="validation"))
    for content in (f"{header}sci.med\ta\tb\n", header, "sci.med\tpills\n"):
        (tmp_path / "20newsgroups-test.tab").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=r"cannot read .*20newsgroups-test\.tab: not lines of a group and a text"):
            load_rows(settings("part:newsgroups"))
    (tmp_path / "20newsgroups-test.tab").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"cannot read .*20newsgroups-test\.tab.*the part is damaged"):
        load_rows(settings("part:newsgroups"))


def test_require_columns() -> None:
    table = datasets.Dataset.from_dict({"sentence": ["a"], "label": [0]})
    require_columns(table, ["label"], "rows")
    with pytest.raises(DataError) as caught:
        require_columns(table, ["sentense", "label", "domain"], "glue (train)")
    text = str(caught.value)
    assert text.startswith("glue (train): 2 columns are missing:")
    assert "'sentense': did you mean 'sentence'?" in text
    assert "'domain': known: label, sentence" in text


def test_class_names() -> None:
    plain = datasets.Dataset.from_dict({"label": [0, 1]})
    stored = plain.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    assert class_names(plain, "label", None, "rows") is None
    assert class_names(plain, "label", ["a", "b"], "rows") == ["a", "b"]
    assert class_names(stored, "label", None, "rows") == ["no", "yes"]
    assert class_names(stored, "label", ["nein", "ja"], "rows") == ["nein", "ja"]
    for names in (["yes", "no"], ["a", "b", "c"]):
        with pytest.raises(DataError, match="does not fit the classes stored with column 'label'"):
            class_names(stored, "label", names, "rows")
