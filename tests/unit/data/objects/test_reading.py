"""What a person holds in a notebook is read exactly, or refused in one paragraph and at once."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from moe_megatron.data.objects import documents
from moe_megatron.data.objects.kinds import _KINDS, reads
from moe_megatron.data.objects.reading import KINDS, Ask, source_of
from moe_megatron.data.readers import read_texts
from moe_megatron.data.shards import InMemory
from moe_megatron.errors import DataError

TEXTS = ["one two", "three\nlines\n", "na\u00efve \U0001f642", "four"]
ROWS = [{"text": text, "y": number} for number, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in that is also home, has its own cache, and no hub within reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "more").mkdir()
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{t}"}}\n' for t in ("a", "b")))
    (tmp_path / "more" / "c.txt").write_text("c")
    (tmp_path / "more" / "d.txt").write_text("d")
    return tmp_path


def texts_of(given: Any, **options: Any) -> list[str]:
    ask = Ask(**options)
    return list(read_texts(source_of(given, ask), ask.text_key))


class ArrowOnly:
    """A table of some other library: all that is known of it is Arrow's interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.table({"text": TEXTS}).__arrow_c_stream__(requested_schema)


class PolarsLike:
    """The part of a DataFrame of polars by which it is told, over real columns."""

    columns = ("text", "y")

    def get_column(self, name: str) -> Any:
        return pd.DataFrame(ROWS)[name]


class Walkable:
    """Any object that can be walked through."""

    def __iter__(self) -> Any:
        return iter(TEXTS)


READ: dict[str, Any] = {
    "list": lambda: TEXTS,
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
    "iterable": Walkable,
    "list of rows": lambda: ROWS,
    "generator of rows": lambda: (row for row in ROWS),
    "dict of columns": lambda: {"text": TEXTS, "y": [1, 2, 3, 4]},
    "dict of a Series": lambda: {"text": pd.Series(TEXTS)},
    "DataFrame": lambda: pd.DataFrame(ROWS),
    "DataFrame of Arrow strings": lambda: pd.DataFrame(ROWS).astype({"text": "string[pyarrow]"}),
    "DataFrame of categories": lambda: pd.DataFrame(ROWS).astype({"text": "category"}),
    "DataFrame with a selection": lambda: pd.DataFrame([*ROWS, {"text": "no", "y": 9}])[:4],
    "polars": PolarsLike,
    "Series": lambda: pd.Series(TEXTS),
    "Index": lambda: pd.Index(TEXTS),
    "array": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "array of strings": lambda: np.array(TEXTS, dtype=np.dtypes.StringDType()),
    "Arrow table": lambda: pa.Table.from_pylist(ROWS),
    "Arrow batch": lambda: pa.RecordBatch.from_pylist(ROWS),
    "Arrow reader": lambda: pa.Table.from_pylist(ROWS).to_reader(),
    "Arrow array": lambda: pa.array(TEXTS),
    "Arrow chunks": lambda: pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "Arrow interface": ArrowOnly,
    "Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "selected Dataset": lambda: datasets.Dataset.from_list([*ROWS, ROWS[0]]).select(range(4)),
    "IterableDataset": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "column of a Dataset": lambda: datasets.Dataset.from_list(ROWS)["text"],
    "DatasetDict of one": lambda: datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS)),
}


@pytest.mark.parametrize("kind", READ)
def test_object_is_read_exactly(kind: str) -> None:
    assert texts_of(READ[kind]()) == TEXTS


def test_another_column_is_named_by_text_key() -> None:
    frame = pd.DataFrame({"body": TEXTS, "text": ["x"] * 4})
    for given in (frame, pa.table(frame), frame.to_dict("records"), frame.to_dict("list")):
        assert texts_of(given, text_key="body") == TEXTS
    assert texts_of(datasets.Dataset.from_pandas(frame), text_key="body") == TEXTS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("texts.jsonl", ["a", "b"]),
        (Path("texts.jsonl"), ["a", "b"]),
        ("~/texts.jsonl", ["a", "b"]),
        (Path("~/texts.jsonl"), ["a", "b"]),
        ("more", ["c", "d"]),
        ("~/more", ["c", "d"]),
        ("more/*.txt", ["c", "d"]),
        ("~/mo*/d.txt", ["d"]),
        ("**/*.txt", ["c", "d"]),
        ([Path("more/d.txt"), Path("texts.jsonl")], ["d", "a", "b"]),
    ],
    ids=str,
)
def test_path_is_read(given: Any, expected: list[str]) -> None:
    assert texts_of(given) == expected


def test_dataset_is_copied_once_and_again_if_the_copy_is_damaged() -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    (folder,) = source_of(dataset, Ask())
    assert isinstance(folder, Path)
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(bytes(arrow.stat().st_size))
    assert texts_of(dataset) == TEXTS
    (folder / "state.json").unlink()
    assert texts_of(dataset) == TEXTS


def split(*names: str) -> Any:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in names})


REFUSED: dict[str, tuple[Any, str]] = {
    "None": (None, "train_data is NoneType; give a list of strings, a DataFrame, a dataset, or"),
    "number": (7, "train_data is int; give a list of strings"),
    "function": (texts_of, "train_data is function; give a list of strings"),
    "empty list": ([], "train_data holds no text; give at least one string that is not empty"),
    "blank texts": (["", " \n"], "train_data holds no text; give at least one string"),
    "ids": ([1, 2], r"train_data\[0\] is int; every item must be text. .* token ids are not read"),
    "rows of ids": ([[1, 2], [3]], r"train_data\[0\] is list; every item must be text. .* token"),
    "None among texts": (["a", None], r"train_data\[1\] is NoneType; .* leave missing values out"),
    "nan among texts": (["a", float("nan")], r"train_data\[1\] is float; .* if it is nan, leave"),
    "bytes in a list": ([b"a"], r"train_data\[0\] is bytes; .* decode it first, with .decode"),
    "bytes": (b"a b c", r"train_data is bytes, not text; decode it .* \[train_data.decode\("),
    "bytearray": (bytearray(b"a"), "train_data is bytearray, not text; decode it"),
    "set": ({"a", "b"}, r"train_data is a set, which has no order, .* give sorted\(train_data\)"),
    "tensor": (torch.ones(3), "train_data is an array of torch.float32, which is no text; token"),
    "array of ids": (np.arange(3), "train_data is an array of int64, which is no text; token ids"),
    "array of bytes": (np.array([b"a"]), r"train_data\[0\] is bytes; .* decode it first"),
    "matrix": (np.array([["a"]]), r"an array of 2 dimensions; give one column .* train_data.ravel"),
    "Series of ids": (pd.Series([1, 2]), r"train_data\[0\] is int; every item must be text"),
    "Series with a gap": (pd.Series(["a", None]), r"train_data\[1\] is (NoneType|float|NAType)"),
    "DataFrame without text": (
        pd.DataFrame({"body": ["a"], "y": [1]}),
        "train_data has no column 'text', but body, y; set text_key to the one that holds the text",
    ),
    "DataFrame with a gap": (
        pd.DataFrame({"text": ["a", None]}),
        r"row 1 of column 'text' of train_data is (NoneType|float|NAType); every item must be text",
    ),
    "DataFrame of numbers": (pd.DataFrame({"text": [1]}), "row 0 of column 'text' .* is int; ever"),
    "DataFrame with twins": (
        pd.DataFrame([["a", "b"]], columns=["text", "text"]),
        "train_data has several columns called 'text'; give one of them alone",
    ),
    "Arrow without text": (pa.table({"body": ["a"]}), "has no column 'text', but body; set text_"),
    "Arrow with a gap": (pa.table({"text": ["a", None]}), "row 1 of column 'text' of train_data"),
    "dict of splits": (
        {"train": ["a"], "test": ["b"]},
        "train_data has no key 'text', but train, test; set text_key",
    ),
    "empty dict": ({}, "train_data has no key 'text', but nothing; set text_key"),
    "dict of one text": ({"text": "a"}, r"train_data\['text'\] is one text; give a list of texts"),
    "dict of ids": ({"text": [1]}, r"train_data\['text'\]\[0\] is int; every item must be text"),
    "rows without text": (
        [{"text": "a"}, {"body": "b"}],
        r"train_data\[1\] is a dict without 'text' \(keys: 'body'\); set text_key",
    ),
    "Dataset without text": (
        datasets.Dataset.from_dict({"body": ["a"]}),
        "train_data has no column 'text', but body; set text_key to the one",
    ),
    "Dataset without rows": (
        datasets.Dataset.from_dict({"text": []}),
        "train_data has no rows; give at least one text",
    ),
    "stream without text": (
        datasets.Dataset.from_dict({"body": ["a"]}).to_iterable_dataset(),
        "train_data has no column 'text', but body",
    ),
    "DatasetDict": (
        split("test", "train"),
        r"train_data is a DatasetDict of 'test', 'train'; give one of them, .* train_data\['train'",
    ),
    "names of files": (
        ["texts.jsonl", "more/c.txt"],
        r"each of them is the name of a file; to read the files give paths, \[Path\(name\) for",
    ),
    "paths and texts": ([Path("texts.jsonl"), "a"], "holds paths and other things; give one or"),
    "empty string": ("", "train_data is an empty string; give a path, or texts in a list"),
    "blank string": (" \n", "train_data is an empty string; give a path, or texts in a list"),
    "word": ("hello", r"is the string 'hello', and there is no file .* into a list: \['hello'\]"),
    "sentence": ("What a day.", "is the string 'What a day.', and there is no file or folder of"),
    "question": ("What is 3*4?", r"no file matches the pattern 'What is 3\*4\?'.* into a list"),
    "long text": ("word " * 300, r"train_data is one text of 1,500 characters, not a path; put it"),
    "long word": ("x" * 500, "train_data is one text of 500 characters, not a path; put it into"),
    "lines": ("a\nb", r"train_data is one text of 3 characters, not a path; .* \[train_data\]"),
    "book": ("x" * 10**6, r"train_data is one text of 1,000,000 characters, not a path"),
    "address": ("https://a.org/b.jsonl", "is an address, .* nothing is fetched from the web; down"),
    "missing file": ("missing.jsonl", "data file missing.jsonl does not exist; check the path"),
    "missing path": (Path("missing"), "data file missing does not exist; check the path"),
    "endless path": (
        Path("x" * 5000),
        r"data file xxx.*\(5,000 characters\) does not exist",
    ),
    "nobody's home": ("~nobody-here/a.jsonl", "data file ~nobody-here/a.jsonl does not exist"),
    "empty pattern": ("more/*.csv", r"no file matches the pattern 'more/\*.csv'"),
    "hub id without a hub": ("owner/name", "owner/name is not a local file, and could not be read"),
    "unknown domain": ("demo:poems", "the demo corpus has no domain 'poems'; use demo:code"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.timeout(30)
def test_object_is_refused_with_what_to_do(kind: str) -> None:
    given, message = REFUSED[kind]
    with pytest.raises(DataError) as caught:
        texts_of(given)
    said = str(caught.value)
    assert re.search(message, said), said
    assert "\n" not in said
    assert len(said) < 900


def test_open_file_is_refused() -> None:
    with (
        Path("more/c.txt").open() as file,
        pytest.raises(DataError, match=r"train_data is an open file; give its path, or"),
    ):
        texts_of(file)


def test_query_that_was_not_computed_is_refused() -> None:
    class Lazy:
        columns = ("text",)

        def collect(self) -> object:
            raise AssertionError("nobody asked for it")

    with pytest.raises(DataError, match=r"is a Lazy, which has not been computed yet; give train_"):
        texts_of(Lazy())


def test_messages_call_the_object_as_the_caller_does() -> None:
    for given in (7, [1], "word", pd.DataFrame({"a": ["b"]})):
        with pytest.raises(DataError, match=r"eval_dataset"):
            texts_of(given, name="eval_dataset")
    with pytest.raises(DataError, match=r"such as eval_dataset\['validation'\]"):
        texts_of(split("train", "validation"), name="eval_dataset")


def test_texts_that_never_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_CHARACTERS", 1000)

    def forever() -> Any:
        while True:
            yield "word"

    with pytest.raises(DataError, match=r"has given more than 1,000 characters and goes on; take"):
        texts_of(forever())


def test_a_kind_of_ones_own_is_one_function() -> None:
    class Corpus:
        pages = ("p", "q")

    before = list(_KINDS)
    try:

        @reads(lambda given: isinstance(given, Corpus))
        def read_corpus(given: Corpus, ask: Ask) -> tuple[InMemory, ...]:
            return (InMemory(texts=given.pages),)

        assert texts_of(Corpus()) == ["p", "q"]
    finally:
        _KINDS[:] = before


def test_kinds_are_told_without_their_libraries() -> None:
    code = (
        "import sys; from moe_megatron.data.objects.reading import *; source_of(['a'], Ask()); "
        "print({m.partition('.')[0] for m in sys.modules} & "
        "{'pandas', 'polars', 'pyarrow', 'datasets', 'torch'})"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "set()\n", answer.stderr


def test_every_file_of_the_package_is_a_kind_or_serves_them() -> None:
    folder = Path(documents.__file__).parent
    names = {Path(name).stem for name in os.listdir(folder) if name.endswith(".py")}
    assert names - {"__init__", "kinds", "documents", "reading"} == {
        Path(str(kind.__file__)).stem for kind in KINDS
    }


def test_kinds_are_asked_in_one_order_whichever_is_imported_first() -> None:
    code = (
        "import moe_megatron.data.objects.hugging_face\n"
        "from moe_megatron.data.objects.kinds import _KINDS\n"
        "print(*dict.fromkeys(reader.__module__.rpartition('.')[2] for _, reader in _KINDS))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [it.__name__.rpartition(".")[2] for it in reversed(KINDS)]
