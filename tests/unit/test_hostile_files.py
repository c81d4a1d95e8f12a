"""Every file that a reader of this package opens may lie: it costs an error, and nothing else.

Each reader is given the same hostile files, and some that only it understands. It reads them, or
passes over them where its file may be missing; or it raises a `MoEError` that names the file. What
would run code is in test_readers.py and tests/functional/test_hostile_checkpoint.py.
"""

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.checkpoint.execute.journal import Journal
from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import INDEX, SINGLE, HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist, resolve
from moe_megatron.checkpoint.formats.unpickler import load_inert_file
from moe_megatron.checkpoint.integrity.manifest import read_manifest
from moe_megatron.checkpoint.integrity.newest_valid import candidates
from moe_megatron.config import load_config
from moe_megatron.config.checkpoint_files import TRACKER, tracked_step
from moe_megatron.config.masked_experts import read_masked
from moe_megatron.data import demo
from moe_megatron.data.index import inspect
from moe_megatron.data.manifest import find_prepared
from moe_megatron.data.readers import read_texts
from moe_megatron.errors import MoEError
from moe_megatron.mcore.recovery.heartbeats import read_beats
from moe_megatron.mcore.recovery.recent_losses import read_losses
from moe_megatron.model import storage
from moe_megatron.platform.death import in_order
from moe_megatron.platform.slurm.run_progress import _attempts
from moe_megatron.platform.slurm.submit import jobs_of
from moe_megatron.platform.slurm.targets import remove_targets
from moe_megatron.run.owner import owner_of
from moe_megatron.serving.keys import read_keys
from moe_megatron.telemetry.exporter.access_token import read_token_file
from moe_megatron.telemetry.history.reader import RoutingHistory
from moe_megatron.telemetry.identity import run_id
from moe_megatron.telemetry.journal import read_events
from moe_megatron.telemetry.sinks.jsonl import (
    read_metrics,
    read_metrics_after,
    read_routing,
    read_routing_after,
    rewind,
)
from moe_megatron.telemetry.sinks.sample_files import read_pairs, read_top_tokens
from moe_megatron.telemetry.uptime.attempts import Attempts
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.small_folders import history, moe_model_config, tokenizer
from moe_megatron.testing.written_run import step_sample
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.webapp.report import write_report

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moe_megatron"
PAGE = (ROOT / "docs" / "security.md").read_text()

CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "binary": bytes(range(256)) * 8,
    "not UTF-8": b'{"\xff\xfe": 1}\n',
    "cut short": b'{"kind": "step", "step": 1, ',
    "nested": b"[" * 50_000 + b"\n",
    "nested objects": b'{"a":' * 25_000 + b"\n",
    "a list": b"[]\n",
    "a list of objects": b"[{}, {}]\n",
    "a number": b"1\n",
    "null": b"null\n",
    "a text": b'"text"\n',
    "an empty object": b"{}\n",
    "NaN": b"NaN\n",
    "many digits": b'{"step": ' + b"9" * 5000 + b"}\n",
    "beyond 64 bits": b'{"kind": "step", "step": ' + b"9" * 400 + b"}\n",
    "half a character": b'{"kind": "\\ud800", "step": 1}\n',
    "zeros": bytes(4096) + b"\n",
}
"""What any file may hold."""


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


KINDS: dict[str, Callable[[Path], None]] = {
    **{name: (lambda path, data=data: path.write_bytes(data)) for name, data in CONTENTS.items()},  # type: ignore[misc]
    "a pipe": _fifo,
    "a device": _endless,
    "a hole of a terabyte": _hole,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
}


def _whole_metrics(folder: Path) -> None:
    for read in (read_metrics, lambda path: read_metrics_after(path, 0)):
        list(read(folder / "metrics.jsonl"))


def _whole_routing(folder: Path) -> None:
    for read in (read_routing, lambda path: read_routing_after(path, 0)):
        list(read(folder / "routing.jsonl"))


def _top_tokens(folder: Path) -> None:
    sample = step_sample(7)
    (folder / "7.jsonl").write_bytes(sample.head.line())
    read_top_tokens(folder / "7.jsonl", sample.head.layers[0])


def _events(folder: Path) -> None:
    events = list(read_events(folder))
    Attempts(events)
    _attempts(events)


def _journal(folder: Path) -> None:
    if (folder / "journal.jsonl").is_file() and not _is_hole(folder / "journal.jsonl"):
        journal = Journal(folder, "plan")
        journal.read()
        journal.close()


def _is_hole(path: Path) -> bool:
    return path.stat().st_size > 2**30


def _targets(folder: Path) -> None:
    own = folder / "own"
    own.mkdir()
    (own / "prometheus_targets.json").write_text("[]")
    remove_targets(own, folder)


def _backend(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps({}))
    TorchDist(folder)


def _metadata(folder: Path) -> None:
    load_inert_file(folder / ".metadata")


def _indexed(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    HfFolder(folder)


def _saved_model(folder: Path) -> None:
    storage.model_type(folder)
    (folder / storage.WEIGHTS_FILE).write_bytes(b"")
    storage.load(folder, "cpu")


def _weights(folder: Path) -> None:
    moe_model_config(folder)
    storage.load(folder, "cpu")


def _tokenizer_config(folder: Path) -> None:
    load_tokenizer(tokenizer(folder), cache_dir=folder / "cache")


def _array_of_history(folder: Path) -> None:
    (folder / "zarr.json").rename(folder / "hostile")
    history(folder)
    (folder / "tokens" / "zarr.json").unlink()
    (folder / "hostile").rename(folder / "tokens" / "zarr.json")
    list(RoutingHistory(folder).snapshots())


def _report(folder: Path) -> None:
    record = {"kind": "step", "step": 1, "total_steps": 1, "loss": 1.0, "learning_rate": 0.1}
    rest = {"grad_norm": 1.0, "step_seconds": 1.0, "tokens": 8, "skipped": False}
    (folder / "metrics.jsonl").write_text(json.dumps({**record, **rest}) + "\n")
    write_report(folder, folder / "page.html")


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "description of a history": ("zarr.json", lambda f: list(RoutingHistory(f).snapshots())),
    "array of a history": ("zarr.json", _array_of_history),
    "routing profile": (
        "routing_profile.json",
        lambda f: RoutingProfile.load(f / PROFILE_FILE),
    ),
    "metrics": ("metrics.jsonl", _whole_metrics),
    "metrics, rewound": ("metrics.jsonl", lambda f: rewind(f / "metrics.jsonl", 1)),
    "routing": ("routing.jsonl", _whole_routing),
    "sample": ("7.jsonl", lambda f: list(read_pairs(f / "7.jsonl"))),
    "tokens of a sample": ("7.tokens.jsonl", _top_tokens),
    "journal": ("events.jsonl", _events),
    "identity of a run": ("run_id", run_id),
    "owner of a run": (".owner/1", owner_of),
    "configuration": ("run.yaml", lambda f: load_config(f / "run.yaml")),
    "configuration in a report": ("config.yaml", _report),
    "checksums": ("checksums.json", read_manifest),
    "tracker": (TRACKER, resolve),
    "tracker of a run": (TRACKER, lambda f: (tracked_step(f), candidates(f))),
    "masked experts": ("masked_experts.json", read_masked),
    "losses before a checkpoint": ("recent_losses.json", read_losses),
    "backend of a checkpoint": ("metadata.json", _backend),
    "metadata of a checkpoint": (".metadata", _metadata),
    "origin of a checkpoint": ("hf/origin.json", description.origin),
    "model's configuration": ("config.json", HfFolder),
    "index of shards": (INDEX, _indexed),
    "header of safetensors": (SINGLE, _indexed),
    "configuration of MoEModel": ("config.json", _saved_model),
    "weights of MoEModel": (storage.WEIGHTS_FILE, _weights),
    "tokenizer": ("tokenizer.json", load_tokenizer),
    "tokenizer's configuration": ("tokenizer_config.json", _tokenizer_config),
    "index of a data set": ("x.idx", lambda f: ((f / "x.bin").touch(), inspect(f / "x"))),
    "manifest of a data set": ("x.json", lambda f: find_prepared(f / "x", {}, 0.1)),
    "manifest of the demo": ("demo.json", lambda f: demo._find(f, demo_tokenizer(f / "cache"))),
    "splits of a data set": ("dataset_dict.json", lambda f: list(read_texts([f]))),
    "saved data set": ("state.json", lambda f: ((f / "a.arrow").touch(), list(read_texts([f])))),
    "Parquet": ("x.parquet", lambda f: list(read_texts([f / "x.parquet"]))),
    "lines of JSON": ("x.jsonl", lambda f: list(read_texts([f / "x.jsonl"]))),
    "packed lines": ("x.jsonl.gz", lambda f: list(read_texts([f / "x.jsonl.gz"]))),
    "lines packed by zstd": ("x.jsonl.zst", lambda f: list(read_texts([f / "x.jsonl.zst"]))),
    "text": ("x.txt", lambda f: list(read_texts([f / "x.txt"]))),
    "journal of a conversion": ("journal.jsonl", _journal),
    "heartbeat of a rank": ("rank0.json", lambda f: read_beats(f, 1)),
    "failure of a rank": ("error.json", lambda f: in_order([], [f / "error.json"])),
    "jobs of a batch system": ("slurm/jobs.jsonl", jobs_of),
    "targets of Prometheus": ("others.json", _targets),
    "API keys": ("keys", lambda f: read_keys(f / "keys")),
    "token": ("token", lambda f: read_token_file(f / "token", "--token-file")),
}
"""The file that each reader opens in a folder, and the reader."""


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """A reader that waits for ever fails the test instead of hanging the suite."""

    def stop(*_: object) -> None:
        raise AssertionError("it still reads after two minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("reader", READERS)
def test_reader_survives_every_hostile_file(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    wrong = []
    for number, (kind, make) in enumerate(KINDS.items()):
        folder = tmp_path / str(number)
        (folder / name).parent.mkdir(parents=True)
        make(folder / name)
        try:
            read(folder)
        except MoEError as error:
            if Path(name).name not in str(error) and str(folder) not in str(error):
                wrong.append(f"{kind}: the message names no file: {error}")
            elif len(str(error)) > 3000:
                wrong.append(f"{kind}: the message has {len(str(error))} characters")
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {error}"[:300])
    assert wrong == []


def test_battery_would_hang_or_fill_memory_without_guards(tmp_path: Path) -> None:
    """The plain calls fail on what the readers survive, or the tests would prove nothing."""
    (tmp_path / "nested").write_bytes(CONTENTS["nested"])
    with pytest.raises(RecursionError):
        json.loads((tmp_path / "nested").read_bytes())
    _hole(tmp_path / "hole")
    with pytest.raises(MemoryError):
        (tmp_path / "hole").read_bytes()
