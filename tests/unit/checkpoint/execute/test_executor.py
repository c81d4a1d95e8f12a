"""Conversions that are killed, disturbed, or have no room, and what is left of them."""

import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.execute import executor as execution
from moe_megatron.checkpoint.execute.executor import execute
from moe_megatron.checkpoint.execute.journal import FILE, Journal
from moe_megatron.checkpoint.execute.publish import check_free, staging_of
from moe_megatron.checkpoint.integrity.manifest import read_manifest
from moe_megatron.errors import CheckpointError
from moe_megatron.testing.random_checkpoint import write_random

QUIET = Execution(progress=False)
KILLS = 20
DRY = Execution(dry_run=True)
MODEL = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
}
Convert = Callable[[Path], object]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 MB of Mixtral in several files."""
    folder = tmp_path_factory.mktemp("random") / "source"
    write_random(folder, MODEL, shard_bytes=4_000_000)
    return folder


@pytest.fixture(scope="module")
def imported(source: Path) -> Path:
    root = source.with_name("imported")
    import_checkpoint(source, root, execution=QUIET)
    return root


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many units as a large model has."""
    monkeypatch.setattr(execution, "_UNIT_BYTES", 300_000)


def contents(folder: Path) -> dict[str, bytes]:
    """Files by name, but for what a kill in the middle of a rename leaves."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def lines_of(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def in_child(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("direction", ["import", pytest.param("export", marks=pytest.mark.deep)])
def test_killed_at_any_moment_it_continues_to_the_same_bytes(
    direction: str, source: Path, imported: Path, tmp_path: Path
) -> None:
    convert: Convert
    if direction == "import":
        convert = partial(import_checkpoint, source, execution=QUIET)
    else:
        convert = partial(export_checkpoint, imported, execution=QUIET)
    units = len(execution.units_of(convert(tmp_path / "x", execution=DRY).plan))
    convert(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    rng = random.Random(11)
    killed = 0
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        result = out / "release" if direction == "import" else out
        child = in_child(partial(convert, out))
        # By what it has done and not by the clock: the machine may be busy with something else.
        enough = rng.randrange(units)
        while child.is_alive() and lines_of(staging_of(result) / FILE) < enough:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.003))
        child.kill()
        child.join()
        killed += child.exitcode != 0
        if not result.exists():
            convert(out)
        assert contents(out) == whole
        assert not staging_of(result).exists()
    assert killed > KILLS // 4


@pytest.mark.usefixtures("small_units")
def test_what_a_kill_left_is_kept_but_for_what_is_damaged(source: Path, tmp_path: Path) -> None:
    plan = import_checkpoint(source, tmp_path / "x", execution=Execution(dry_run=True)).plan
    units = execution.units_of(plan)
    staging = tmp_path / "staging"
    execute(plan, staging, progress=False)
    damaged = units[3]
    with (staging / plan.targets[damaged.file].name).open("r+b") as file:
        file.seek(damaged.offset)
        file.write(b"damaged")
    outcome = execute(plan, staging, progress=False)
    assert outcome.resumed_bytes == plan.nbytes - damaged.nbytes
    again = execute(plan, staging, progress=False, resume=False)
    assert again.resumed_bytes == 0
    assert again.ranges == outcome.ranges


def test_journal_of_another_plan_is_not_believed(source: Path, tmp_path: Path) -> None:
    plans = [
        import_checkpoint(source, tmp_path / "x", dtype=d, execution=Execution(dry_run=True)).plan
        for d in ("bf16", "fp32")
    ]
    assert plans[0].hash != plans[1].hash
    execute(plans[0], tmp_path / "staging", progress=False)
    assert execute(plans[1], tmp_path / "staging", progress=False).resumed_bytes == 0


def test_torn_and_nonsense_lines_of_a_journal_count_as_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "plan")
    journal.start()
    journal.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('[1, "abc", [2]]\n[2, "abc"]\n["x", "abc", []]\n{}\n[3, "abc", ["y"]]\n[4, "ab')
    journal = Journal(tmp_path, "plan")
    found = journal.read()
    journal.close()
    assert {n: (f.digest, f.nonfinite) for n, f in found.items()} == {1: ("abc", (2,))}


def test_source_that_changes_meanwhile_is_an_error(source: Path, tmp_path: Path) -> None:
    plan = import_checkpoint(source, tmp_path / "x", execution=Execution(dry_run=True)).plan
    file = plan.sources[1].path
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    try:
        with pytest.raises(CheckpointError, match=rf"{file} changed while it was being converted"):
            execute(plan, tmp_path / "staging", progress=False)
    finally:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_source_that_shrinks_meanwhile_is_an_error(source: Path, tmp_path: Path) -> None:
    plan = import_checkpoint(source, tmp_path / "x", execution=Execution(dry_run=True)).plan
    file = plan.sources[1].path
    status, whole = file.stat(), file.read_bytes()
    os.truncate(file, len(whole) - 100)
    try:
        with pytest.raises(CheckpointError, match=rf"{file} (ends at byte|changed)"):
            execute(plan, tmp_path / "staging", progress=False)
    finally:
        file.write_bytes(whole)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_two_conversions_into_one_folder_are_refused(source: Path, tmp_path: Path) -> None:
    plan = import_checkpoint(source, tmp_path / "x", execution=Execution(dry_run=True)).plan
    (tmp_path / "staging").mkdir()
    first = Journal(tmp_path / "staging", plan.hash)
    with pytest.raises(CheckpointError, match="another process is converting into"):
        execute(plan, tmp_path / "staging", progress=False)
    first.close()
    execute(plan, tmp_path / "staging", progress=False)


def test_no_room_is_explained_and_the_destination_stays(
    source: Path, imported: Path, tmp_path: Path
) -> None:
    """A limit of file sizes stands for the full disk; both fail in the middle of writing."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "before.txt").write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def work() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            replace = Execution(progress=False, overwrite=True)
            export_checkpoint(imported, tmp_path / "out", execution=replace)
        except CheckpointError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            (tmp_path / "said").write_text(str(error))

    in_child(work).join()
    assert "start it again to continue" in (tmp_path / "said").read_text()
    assert contents(tmp_path / "out") == {"before.txt": b"before"}


def test_disk_that_is_too_small_is_known_before_writing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = execution.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(execution.shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(CheckpointError, match=r"is full: the conversion writes .* 0\.01 GB are fr"):
        import_checkpoint(source, tmp_path / "out", execution=QUIET)
    assert not (tmp_path / "out" / "release").exists()


def test_kill_between_two_renames_brings_the_old_content_back(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "before.txt").write_text("before")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        check_free(tmp_path / "out", overwrite=False)
    assert contents(tmp_path / "out") == {"before.txt": b"before"}


def test_workers_are_at_least_one(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"number of workers \(0\) must be at least 1"):
        import_checkpoint(source, tmp_path / "x", execution=Execution(workers=0, progress=False))


def test_checksums_are_those_of_the_files(imported: Path) -> None:
    import xxhash

    release = imported / "release"
    manifest = read_manifest(release)
    assert manifest is not None
    assert manifest.algorithm == "xxh3"
    on_disk = {str(p.relative_to(release)) for p in release.rglob("*") if p.is_file()}
    assert set(manifest.files) == on_disk - {"checksums.json"}
    for name, blocks in manifest.files.items():
        data, at = (release / name).read_bytes(), 0
        for nbytes, digest in blocks:
            assert xxhash.xxh3_64(data[at : at + nbytes]).hexdigest() == digest
            at += nbytes
        assert at == len(data)
