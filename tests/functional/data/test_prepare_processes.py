"""Workers, kills and interrupts: what only several processes show."""

import gzip
import json
import os
import re
import signal

import pytest

from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.shards import InMemory
from moe_megatron.errors import DataError
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.training import train_tokenizer

pytestmark = pytest.mark.distributed

PREPARE = """
import sys, time
from pathlib import Path
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.text.loading import load_tokenizer
import plain_writer

class SlowWriter(plain_writer.PlainWriter):
    def add_document(self, tokens):
        super().add_document(tokens)
        self.file.flush()
        time.sleep(0.01)

source, tokenizer, output, workers = sys.argv[1:]
open_writer = SlowWriter if workers == "1" else plain_writer.open_plain
prepare_dataset(
    [source], load_tokenizer(tokenizer), output, open_writer,
    num_workers=int(workers), progress=False,
)
"""


@pytest.fixture(scope="module")
def texts():
    return [
        f"Document {i} about {i * i}.\nIt has caf\u00e9s, " + "x" * (i % 97) for i in range(3000)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("source") / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("tokenizer") / "tok"
    return train_tokenizer(texts[:200], directory, vocab_size=300)


def content(prefix):
    return [prefix.with_name(f"{prefix.name}{suffix}").read_bytes() for suffix in (".bin", ".idx")]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def expected(tmp_path_factory, source, tokenizer, plain_writer):
    prefix = tmp_path_factory.mktemp("expected") / "data"
    prepare_dataset(
        [source], tokenizer, prefix, plain_writer.open_plain, num_workers=1, progress=False
    )
    return content(prefix)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_result_is_the_same_for_any_number_of_workers(
    tmp_path, source, texts, tokenizer, plain_writer, expected, num_workers
):
    archive = tmp_path / "x.jsonl.gz"
    archive.write_bytes(gzip.compress(source.read_bytes()))
    for name, sources in {
        "plain": [source],
        "memory": [InMemory(texts=tuple(texts))],
        "archive": [archive],
    }.items():
        prefix = tmp_path / "out" / name
        dataset = prepare_dataset(
            sources,
            tokenizer,
            prefix,
            plain_writer.open_plain,
            num_workers=num_workers,
            progress=False,
        )
        assert dataset.documents == len(texts)
        assert content(prefix) == expected
    assert len(names(tmp_path / "out")) == 9


@pytest.mark.slow
def test_megatron_writes_the_same_bytes_from_two_workers(tmp_path, source, tokenizer, expected):
    from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset

    prepare_dataset(
        [source], tokenizer, tmp_path / "x", open_indexed_dataset, num_workers=2, progress=False
    )
    assert content(tmp_path / "x") == expected


def test_workers_number_bad_lines_within_the_file(tmp_path, tokenizer, plain_writer):
    path = tmp_path / "x.jsonl"
    good = b'{"text": "x"}\n'
    path.write_bytes(good * 400 + b"{}\n" + good * 400)
    with pytest.raises(DataError, match=rf"1 of 801 lines (?s:.*){path}:401: no key 'text'"):
        prepare_dataset(
            [path],
            tokenizer,
            tmp_path / "out" / "x",
            plain_writer.open_plain,
            num_workers=3,
            max_bad_line_ratio=0,
            progress=False,
        )
    assert names(tmp_path / "out") == []


def test_error_in_a_worker_reaches_the_caller(tmp_path, source, tokenizer, plain_writer):
    broken = tmp_path / "x.jsonl.gz"
    broken.write_bytes(gzip.compress(source.read_bytes())[:-9])
    with pytest.raises(DataError, match="damaged or truncated"):
        prepare_dataset(
            [source, broken],
            tokenizer,
            tmp_path / "out" / "x",
            plain_writer.open_plain,
            num_workers=2,
            progress=False,
        )
    assert names(tmp_path / "out") == []


def test_killed_worker_is_reported_with_a_remedy(tmp_path, source, tokenizer, monkeypatch):
    (tmp_path / "dying_writer.py").write_text(
        "import os, signal\n"
        "def open_writer(prefix, vocab_size):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import dying_writer

    with pytest.raises(DataError, match=r"exit code -9 .*use fewer workers or give the job more"):
        prepare_dataset(
            [source],
            tokenizer,
            tmp_path / "out" / "x",
            dying_writer.open_writer,
            num_workers=2,
            progress=False,
        )
    assert names(tmp_path / "out") == []


def begun(directory):
    return any(path.stat().st_size for path in directory.glob(".data.partial-*/part-0.bin"))


def test_run_after_a_kill_is_right_and_removes_the_leftovers(
    tmp_path, source, tokenizer, plain_writer, expected, start, wait_until
):
    process = start(PREPARE, source, tokenizer.directory, tmp_path / "data", 1)
    wait_until(lambda: begun(tmp_path))
    process.kill()
    process.wait()
    assert not {"data.bin", "data.idx"} & set(names(tmp_path))
    prepare_dataset([source], tokenizer, tmp_path / "data", plain_writer.open_plain, progress=False)
    assert content(tmp_path / "data") == expected
    assert names(tmp_path) == ["data.bin", "data.idx", "data.json"]


def test_ctrl_c_leaves_nothing(tmp_path, source, tokenizer, start, wait_until):
    process = start(PREPARE, source, tokenizer.directory, tmp_path / "data", 1)
    wait_until(lambda: begun(tmp_path))
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate()[1]
    assert names(tmp_path) == []


def test_ctrl_c_ends_the_workers(tmp_path, tokenizer, start, wait_until, texts):
    source = tmp_path / "large.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) * 100)
    process = start(PREPARE, source, tokenizer.directory, tmp_path / "out" / "data", 2)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    wait_until(lambda: begun(tmp_path / "out"))
    with open(children) as file:
        workers = [int(child) for child in file.read().split()]
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert names(tmp_path / "out") == []
    wait_until(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))


def test_script_without_main_guard_may_use_workers(tmp_path, source, tokenizer, start, expected):
    script = tmp_path / "train.py"
    script.write_text(PREPARE)
    runner = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    process = start(runner, script, source, tokenizer.directory, tmp_path / "out" / "data", 2)
    assert process.communicate()[1] == ""
    assert content(tmp_path / "out" / "data") == expected


def test_processes_that_prepare_the_same_share_the_work(
    tmp_path, source, tokenizer, start, expected
):
    processes = [
        start(PREPARE, source, tokenizer.directory, tmp_path / "data", 2) for _ in range(3)
    ]
    assert [process.communicate()[1] for process in processes] == [""] * 3
    assert content(tmp_path / "data") == expected
    assert names(tmp_path) == ["data.bin", "data.idx", "data.json"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "from moe_megatron.data.readers import read_texts\n"
            "list(read_texts(['Salesforce/no-such-data:config']))",
            "Salesforce/no-such-data:config is not a local file.*save_to_disk",
        ),
        pytest.param(
            "from moe_megatron.text.loading import load_tokenizer\n"
            "load_tokenizer('nobody/no-such-tokenizer')",
            "no tokenizer at 'nobody/no-such-tokenizer'.*save_pretrained",
            marks=pytest.mark.deep,
        ),
    ],
    ids=["dataset", "tokenizer"],
)
def test_hub_without_network_names_the_remedy(tmp_path, start, code, message):
    process = start(
        code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path), MOE_MEGATRON_CACHE=str(tmp_path)
    )
    errors = process.communicate()[1]
    assert re.search(f"DataError: {message}", errors), errors


def test_transformers_reads_a_trained_tokenizer(tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer.directory)
    own = load_tokenizer(tokenizer.directory)
    assert (
        theirs("a caf\u00e9", add_special_tokens=False)["input_ids"]
        == own.encode_batch(["a caf\u00e9"])[0]
    )
    assert theirs.eos_token_id == own.eod_id
