"""Files that lie in a way that only their reader understands: sizes, offsets, names, aliases.

What any reader must survive is in test_hostile_files.py.
"""

import gzip
import json
import os
import pickle
import pickletools
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import moe_megatron.mcore  # noqa: F401 (before Megatron: prepares it for this machine)
from moe_megatron import pickle_size
from moe_megatron.checkpoint.formats.hf_folder import INDEX, SINGLE, HfFolder
from moe_megatron.checkpoint.formats.side_files import to_megatron
from moe_megatron.checkpoint.formats.unpickler import load_inert
from moe_megatron.config import load_config
from moe_megatron.data.index import inspect
from moe_megatron.data.readers import read_texts
from moe_megatron.errors import MoEError
from moe_megatron.mcore.recovery.rollback import RollBack
from moe_megatron.model import storage
from moe_megatron.telemetry.history.reader import RoutingHistory
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.uptime.attempts import Attempts
from moe_megatron.testing.small_folders import history, moe_model_config, tokenizer
from moe_megatron.text.loading import load_tokenizer

# --- safetensors and the index of shards --------------------------------------------------------


def safetensors(header: object, data: int = 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, bytes] = {
    "huge header": safetensors({}, length=2**63),
    "header beyond the file": safetensors({"a": entry()}, 8, length=10_000),
    "tensor beyond the file": safetensors({"a": entry(shape=[8], offsets=[0, 32])}, 8),
    "size that is no product": safetensors({"a": entry(shape=[3])}, 8),
    "product beyond 64 bits": safetensors({"a": entry(shape=[2**32, 2**32, 2**32])}, 8),
    "negative offset": safetensors({"a": entry(offsets=[-8, 0])}, 8),
    "offsets that are no numbers": safetensors({"a": entry(offsets=["0", True])}, 8),
    "one offset": safetensors({"a": entry(offsets=[0])}, 8),
    "overlapping tensors": safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, 12),
    "tensors apart": safetensors({"a": entry(), "b": entry(offsets=[12, 20])}, 20),
    "bytes that no tensor has": safetensors({"a": entry()}, 99),
    "unknown type": safetensors({"a": entry("Q99")}, 8),
    "type that is no text": safetensors({"a": entry(["F32"])}, 8),
    "tensor that is a list": safetensors({"a": []}, 0),
    "the same tensor twice": safetensors(
        b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), 8
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_lying_safetensors_are_refused_by_both_readers(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / SINGLE).write_bytes(HEADERS[case])
    with pytest.raises(MoEError, match=r"model\.safetensors"):
        HfFolder(tmp_path)
    if case == "the same tensor twice":
        return  # the library takes the last one
    moe_model_config(tmp_path)
    with pytest.raises(MoEError, match=r"model\.safetensors"):
        storage.load(tmp_path, "cpu")


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "..", "a/b", "", "a\0b", 7]
)
def test_index_that_leaves_its_folder_is_refused(shard: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(MoEError, match=r"not a file of this folder|which is a folder"):
        HfFolder(tmp_path)


def test_side_file_that_links_out_of_its_folder_is_not_copied(tmp_path: Path) -> None:
    secret, model = tmp_path / "id_rsa", tmp_path / "models" / "model"
    secret.write_text("secret")
    model.mkdir(parents=True)
    (model / "README.md").symlink_to(secret)
    with pytest.raises(MoEError, match=r"README\.md is a link to .*id_rsa, which is not in"):
        to_megatron(model)


def test_cache_of_the_hub_is_copied_through_its_links(tmp_path: Path) -> None:
    blobs, model = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    model.mkdir(parents=True)
    (blobs / "1f").write_text("text")
    (model / "README.md").symlink_to("../../blobs/1f")
    assert [read() for _, read in to_megatron(model)] == [b"text"]


# --- the history --------------------------------------------------------------------------------


def change(path: Path, *keys: str | int, value: object) -> None:
    whole: Any = json.loads(path.read_text())
    part = whole
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(whole))


def test_history_that_lies_about_steps_is_refused(tmp_path: Path) -> None:
    folder = history(tmp_path / "history")
    for array in ("tokens", "tokens_per_expert", "assigned", "dropped"):
        change(folder / array / "zarr.json", "shape", 0, value=2**50)
    change(folder / "zarr.json", "attributes", "moe_routing_history", "last_step", value=2**40)
    with pytest.raises(MoEError, match=r"zarr\.json tells of 1,099,511,627,776 steps, but"):
        list(RoutingHistory(folder).snapshots())


def test_history_with_chunks_beyond_memory_is_refused(tmp_path: Path) -> None:
    folder = history(tmp_path / "history")
    path = folder / "tokens_per_expert" / "zarr.json"
    change(path, "chunk_grid", "configuration", "chunk_shape", 0, value=2**40)
    with pytest.raises(MoEError, match=r"tokens_per_expert/zarr\.json says that a chunk has 3"):
        RoutingHistory(folder)


def test_history_with_endless_experts_is_refused(tmp_path: Path) -> None:
    folder = history(tmp_path / "history")
    change(folder / "zarr.json", "attributes", "moe_routing_history", "num_experts", value=2**40)
    with pytest.raises(MoEError, match=r"2 layers of 1,099,511,627,776 experts are too many"):
        RoutingHistory(folder)


def test_history_with_a_pipe_for_a_chunk_is_refused(tmp_path: Path) -> None:
    folder = history(tmp_path / "history")
    (folder / "tokens" / "c.0").unlink()
    os.mkfifo(folder / "tokens" / "c.0")
    with pytest.raises(MoEError, match=r"tokens/c\.0 is no regular file"):
        RoutingHistory(folder)


# --- text: YAML, journals, profiles -------------------------------------------------------------

NAMES = list(pairwise("abcdefghi"))
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in NAMES
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new}\n  <<: [{', '.join([f'*{old}'] * 20)}]\n" for old, new in NAMES
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        MERGES,
        "a: &a [*a]\n",
        "model: {num_layers: 0x" + "f" * 200_000 + "}\n",
        "model: {num_layers: 0x" + "f" * 5_000 + "}\n",
        "model: {num_layers: 1e999}\n",
        "model: {num_layers: .nan}\n",
        "? [a, {b: c}]\n: 1\n",
        "model: !!binary AAAA\n",
        "run_dir: !!python/name:os.system\n",
        "run_dir: !unknown x\n",
        "run_dir: 2026-99-99\n",
        "base: [x]\n",
    ],
)
def test_hostile_yaml_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(MoEError, match=r"run\.yaml: ") as caught:
        load_config(tmp_path / "run.yaml")
    assert len(str(caught.value)) < 1000


ODD_EVENTS = [
    {"time": 1.0, "kind": "rolled_back", "step": 2**52, "to_step": 0},
    {"time": 10**300, "kind": "saved", "step": 1},
    {"time": float("nan"), "kind": "saved", "step": 1},
    {"time": True, "kind": "saved", "step": 1},
    {"time": 1.0, "kind": "saved", "step": float("inf"), "seconds": float("-inf")},
    {"time": 1.0, "kind": ["saved"], "step": 1},
    {"time": 1.0, "kind": "resumed", "step": "1", "seconds": [], "reached": {}},
    {"time": 1.0, "kind": "ended", "code": "x", "reason": {"a": [1]}},
    {"time": 1.0, "kind": "launched", "job": 7, "step": []},
]


def test_journal_with_odd_values_is_read(tmp_path: Path) -> None:
    lines = "".join(f"{json.dumps(event)}\n" for event in ODD_EVENTS)
    (tmp_path / "events.jsonl").write_text(lines + '{"time": 5, "kind": "saved", "step": 3}\n')
    assert Attempts(read_events(tmp_path)).checkpoints == {3: 5.0}
    assert RollBack(None, tmp_path).left_out() == []


def test_line_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("x" * 2**21)
    with pytest.raises(MoEError, match=r"events\.jsonl is no journal from byte 0 on"):
        list(read_events(tmp_path))


# --- data ---------------------------------------------------------------------------------------


def index_of(lengths: list[int], starts: list[int], ends: list[int], sequences: int) -> bytes:
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, sequences, len(ends))
    return header + b"".join(
        np.array(values, dtype).tobytes()
        for values, dtype in ((lengths, "<i4"), (starts, "<i8"), (ends, "<i8"))
    )


@pytest.mark.parametrize(
    "content",
    [
        index_of([2, 2], [0, 8], [0, 1, 2], 2**62),
        index_of([2, 2], [0, 8], [0, 1, 2], 2**40),
        index_of([2, 2], [0, 4], [0, 1, 2], 2),
        index_of([2, 2], [-8, 8], [0, 1, 2], 2),
        index_of([-2, 6], [0, -8], [0, 1, 2], 2),
        index_of([2, 2], [0, 8], [0, 1, 99], 2),
        index_of([2, 2], [0, 8], [2, 1, 0], 2),
        index_of([2, 2], [0, 8], [-1, 1, 2], 2),
        index_of([2, 2], [0, 8], [], 2),
        index_of([2, 9], [0, 8], [0, 1, 2], 2),
    ],
)
def test_index_of_tokens_that_lies_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(16))
    (tmp_path / "x.idx").write_bytes(index_of([2, 2], [0, 8], [0, 1, 2], 2))
    assert inspect(tmp_path / "x").documents == 2
    (tmp_path / "x.idx").write_bytes(content)
    with pytest.raises(MoEError, match=r"x\.(idx|bin) "):
        inspect(tmp_path / "x")


def test_archive_that_unpacks_to_one_endless_line_is_refused(tmp_path: Path) -> None:
    zeros = bytes(2**24)
    with gzip.open(tmp_path / "x.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(10):
            file.write(zeros)
    packed = zstandard.ZstdCompressor().compressobj()
    frame = b"".join(packed.compress(zeros) for _ in range(10)) + packed.flush()
    (tmp_path / "x.jsonl.zst").write_bytes(frame)
    for name in ("x.jsonl.gz", "x.jsonl.zst"):
        assert (tmp_path / name).stat().st_size < 2**20
        with pytest.raises(MoEError, match=rf"{name}: a line has more than 134,217,728 bytes"):
            list(read_texts([tmp_path / name]))


def test_tokenizer_with_an_endless_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tokenizer(tmp_path) / "tokenizer.json"
    change(path, "model", "vocab", "a", value=2**32 - 1)
    with pytest.raises(MoEError, match=r"tokenizer\.json needs an embedding of 4,294,967,296 rows"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change_of",
    [
        ("model", "type", "Nothing"),
        ("model", "vocab", []),
        ("added_tokens", 0, {"id": -1}),
        ("model", "unk_token", 7),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(" * 500}}),
    ],
)
def test_tokenizer_that_is_none_is_refused(change_of: tuple[Any, ...], tmp_path: Path) -> None:
    change(tokenizer(tmp_path) / "tokenizer.json", *change_of[:-1], value=change_of[-1])
    with pytest.raises(MoEError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


# --- pickles that run no code -------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".",
        b"Np2000000000\n.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b".",
        b"Vno end",
    ],
)
def test_pickle_that_announces_more_than_it_holds_is_refused(data: bytes) -> None:
    with pytest.raises(MoEError, match=r"it announces .*which it does not hold"):
        load_inert(data, "it")


def test_sizes_of_operations_are_those_of_python() -> None:
    widths = {-1: "lines", -2: 1, -3: 4, -4: 4, -5: 8}
    for operation in pickletools.opcodes:
        code, size = ord(operation.code), operation.arg.n if operation.arg else 0
        assert pickle_size._ARGUMENT.get(code, 0) == max(size, 0), operation.name
        if size < -1:
            assert pickle_size._COUNTED[code] == widths[size], operation.name
        lines = {"c": 2, "i": 2}.get(operation.code, 1) if size == -1 else 0
        assert pickle_size._LINES.get(code, 0) == lines, operation.name
    everything = {"a": [1, 2**40, 2.5, None, True], "b": (b"x" * 300, "y" * 300), "c": {1, 2}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickle_size.check_size(pickle.dumps(everything, protocol), "it")
