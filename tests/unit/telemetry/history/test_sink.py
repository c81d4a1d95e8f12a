import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.telemetry.catalog import quantity_names
from moe_megatron.telemetry.history import HistorySink, RoutingHistory
from moe_megatron.telemetry.history.layout import ArrayLayout, HistoryLayout
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

Write = Callable[..., None]
Check = Callable[..., None]
Make = Callable[..., RoutingSnapshot]
MakeRun = Callable[..., RunInfo]
MakeStep = Callable[..., StepRecord]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 steps for counts and 8 for all else, so that few steps fill many."""
    arrays = HistoryLayout.arrays

    def small(layout: HistoryLayout) -> tuple[ArrayLayout, ...]:
        def shrink(array: ArrayLayout) -> ArrayLayout:
            steps = 4 if array.name == "tokens_per_expert" else 8
            values = {name: getattr(array, name) for name in ArrayLayout.__slots__}
            return ArrayLayout(**(values | {"chunk_shape": (steps, *array.chunk_shape[1:])}))

        return tuple(map(shrink, arrays(layout)))

    monkeypatch.setattr(HistoryLayout, "arrays", small)


@pytest.mark.parametrize("flush_seconds", [0.0, 10.0])
@pytest.mark.parametrize("num_steps", [1, 4, 5, 33])
@pytest.mark.usefixtures("small_chunks")
def test_steps_read_back_equal(
    write: Write, check: Check, num_steps: int, flush_seconds: float
) -> None:
    write(range(1, num_steps + 1), flush_seconds=flush_seconds)
    check(range(1, num_steps + 1))


@pytest.mark.parametrize("resume_at", [1, 4, 7, 8, 16])
@pytest.mark.usefixtures("small_chunks")
def test_resume_has_neither_duplicates_nor_gaps(
    write: Write, check: Check, folder: Path, resume_at: int
) -> None:
    write(range(1, 17))
    write([], start_step=resume_at)
    check(range(1, resume_at + 1))
    write(range(resume_at + 1, 30), start_step=resume_at)
    check(range(1, 30))


@pytest.mark.usefixtures("small_chunks")
def test_resume_beyond_the_last_step_leaves_a_visible_gap(
    write: Write, check: Check, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(range(1, 8))
    write(range(21, 24), start_step=20)
    check([*range(1, 8), *range(21, 24)])
    history = RoutingHistory(folder)
    assert (history.first_step, history.last_step) == (1, 23)
    assert (history.tokens(8, 20) == -1).all()
    assert np.isnan(history.series("entropy", 8, 20)).all()
    assert (
        "ends at step 7, but the run resumes after step 20; the steps in between are missing"
        in (caplog.text)
    )


@pytest.mark.usefixtures("small_chunks")
def test_history_begun_at_a_checkpoint_begins_there(
    write: Write, check: Check, folder: Path
) -> None:
    write(range(11, 15), start_step=10)
    check(range(11, 15))
    assert RoutingHistory(folder).first_step == 11
    write(range(6, 13), start_step=5)
    check(range(6, 13))
    assert RoutingHistory(folder).first_step == 6


@pytest.mark.usefixtures("small_chunks")
def test_steps_without_routing_are_gaps(
    folder: Path, make_run: MakeRun, make_step: MakeStep, make_snapshot: Make, check: Check
) -> None:
    sink = HistorySink(folder)
    sink.start(make_run())
    for step in range(1, 10):
        sink.step(make_step(step), None if step % 2 else make_snapshot(step))
        sink.evaluation(EvalRecord(step=step, split="validation", loss=1.0))
    sink.close()
    check([2, 4, 6, 8])


def test_flush_before_a_checkpoint_puts_every_step_on_disk(
    folder: Path, make_run: MakeRun, make_step: MakeStep, make_snapshot: Make, check: Check
) -> None:
    sinks = SinkSet([HistorySink(folder, flush_seconds=1e9)])
    sinks.start(make_run())
    for step in range(1, 6):
        sinks.step(make_step(step), make_snapshot(step))
    assert sinks.flush()
    check(range(1, 6))
    sinks.close()


def test_reader_sees_new_steps_after_refresh(
    folder: Path, make_run: MakeRun, make_step: MakeStep, make_snapshot: Make
) -> None:
    sink = HistorySink(folder)
    sink.start(make_run())
    history = RoutingHistory(folder)
    assert (history.first_step, history.last_step) == (1, 0)
    assert history.tokens_per_expert().shape == (0, 2, 4)
    sink.step(make_step(1), make_snapshot(1))
    sink.flush()
    assert history.last_step == 0
    history.refresh()
    assert [snapshot.step for snapshot in history.snapshots()] == [1]
    sink.close()


def test_new_run_sets_an_earlier_history_aside(
    write: Write, check: Check, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for last in (9, 5, 3):
        write(range(1, last + 1))
    check(range(1, 4))
    assert RoutingHistory(folder.with_name("history.old")).last_step == 5
    assert "history belongs to an earlier run; it is kept as history.old" in caplog.text


def test_chunks_of_another_size_are_continued(
    write: Write, check: Check, request: pytest.FixtureRequest
) -> None:
    """A later version may choose other chunks: an open history keeps its own."""
    write(range(1, 10))
    request.getfixturevalue("small_chunks")
    write(range(8, 40), start_step=7)
    check(range(1, 40))


def test_history_of_another_model_is_left_alone(
    write: Write, check: Check, make_run: MakeRun, folder: Path
) -> None:
    write(range(1, 4))
    sink = HistorySink(folder)
    with pytest.raises(DataError, match=r"has layers \(2, 3\) with 4 experts .* move it away"):
        sink.start(make_run(start_step=2, num_experts=8))
    sink.close()
    check(range(1, 4))


@pytest.fixture
def margins(folder: Path, make_run: MakeRun, make_step: MakeStep, make_snapshot: Make) -> Write:
    """Writes steps of a run that has a margin besides the usual quantities."""

    def write(steps: Iterable[int], start_step: int) -> None:
        sink = HistorySink(folder)
        names = ("entropy", "aux_loss", "z_loss", "margin")
        sink.start(make_run(start_step=start_step, quantities=names))
        for step in steps:
            margin = {"margin": np.array([step, -step], dtype=np.float64)}
            sink.step(make_step(step), make_snapshot(step, per_layer=margin))
        sink.close()

    return write


@pytest.mark.usefixtures("small_chunks")
def test_resume_with_a_new_quantity_has_none_of_it_before(
    write: Write, margins: Write, folder: Path, make_snapshot: Make
) -> None:
    write(range(1, 14))
    margins(range(11, 19), start_step=10)
    history = RoutingHistory(folder)
    assert history.quantities == ("entropy", "aux_loss", "z_loss", "margin")
    assert np.isnan(history.series("margin", 1, 10)).all()
    assert history.series("margin", 11, 18).tolist() == [[n, -n] for n in range(11, 19)]
    for step, found in enumerate(history.snapshots(), start=1):
        expected = make_snapshot(step)
        assert found.tokens_per_expert.tolist() == expected.tokens_per_expert.tolist()
        assert found.per_layer["z_loss"].tolist() == expected.per_layer["z_loss"].tolist()
    profile = history.profile()
    assert profile.means["margin"].tokens.tolist() == [8 * 50, 8 * 50]
    assert profile.per_layer["margin"].tolist() == [14.5, -14.5]


@pytest.mark.usefixtures("small_chunks")
def test_resume_without_an_old_quantity_leaves_it_empty_and_keeps_what_was_there(
    write: Write, margins: Write, folder: Path
) -> None:
    margins(range(1, 13), start_step=0)
    write(range(11, 19), start_step=10)
    history = RoutingHistory(folder)
    assert history.quantities == ("entropy", "aux_loss", "z_loss", "margin")
    assert history.series("margin", 1, 10).tolist() == [[n, -n] for n in range(1, 11)]
    assert np.isnan(history.series("margin", 11, 18)).all()
    assert np.isfinite(history.series("entropy")).all()
    margins(range(17, 20), start_step=16)
    margin = RoutingHistory(folder).series("margin")
    assert np.isnan(margin).all(axis=1).tolist() == [10 < n <= 16 for n in range(1, 20)]


@pytest.mark.usefixtures("small_chunks")
def test_array_of_a_killed_writer_that_never_said_so_is_made_anew(
    write: Write, margins: Write, folder: Path
) -> None:
    """A kill between the new array and the description leaves an array that nobody knows."""
    write(range(1, 10))
    description = (folder / "zarr.json").read_bytes()
    margins(range(5, 8), start_step=4)
    (folder / "zarr.json").write_bytes(description)
    assert RoutingHistory(folder).quantities == ("entropy", "aux_loss", "z_loss")
    margins(range(8, 11), start_step=7)
    margin = RoutingHistory(folder).series("margin")
    assert np.isnan(margin[:7]).all()
    assert margin[7:].tolist() == [[n, -n] for n in (8, 9, 10)]


def test_quantity_that_this_process_does_not_know_is_read_completely(
    margins: Write, folder: Path
) -> None:
    margins(range(1, 4), start_step=0)
    assert "margin" not in quantity_names()
    found = [
        snapshot.per_layer["margin"].tolist() for snapshot in RoutingHistory(folder).snapshots()
    ]
    assert found == [[1, -1], [2, -2], [3, -3]]


def test_steps_out_of_order_and_counts_out_of_range_are_refused(
    folder: Path, make_run: MakeRun, make_step: MakeStep, make_snapshot: Make
) -> None:
    sink = HistorySink(folder)
    sink.start(make_run())
    sink.step(make_step(2), make_snapshot(2))
    with pytest.raises(DataError, match="step 2 cannot follow step 2"):
        sink.step(make_step(2), make_snapshot(2))
    tokens = 2**31
    huge = make_snapshot(
        3, tokens=tokens, dropped=np.zeros(2, int), tokens_per_expert=np.full((2, 4), tokens // 2)
    )
    with pytest.raises(DataError, match="2147483648 tokens; a history counts at most"):
        sink.step(make_step(3), huge)
    sink.close()


def test_wrong_address_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="cannot be kept at 'ftp://host/a'"):
        HistorySink("ftp://host/a")


def test_dense_model_writes_nothing(write: Write, folder: Path) -> None:
    write([], layers=(), num_experts=0)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ['{"zarr', "{}"])
def test_damaged_history_is_reported_once_and_the_run_goes_on(
    write: Write,
    folder: Path,
    make_run: MakeRun,
    make_step: MakeStep,
    make_snapshot: Make,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    write(range(1, 4))
    (folder / "zarr.json").write_text(damage)
    sinks = SinkSet([HistorySink(folder)])
    sinks.start(make_run(start_step=3))
    for step in range(4, 8):
        sinks.step(make_step(step), make_snapshot(step))
    assert sinks.flush()
    sinks.close()
    (warning,) = [r.message for r in caplog.records if "sink history failed" in r.message]
    assert "zarr.json" in warning
    assert "restore that file or move the folder away" in warning
    assert (folder / "zarr.json").read_text() == damage


_FULL_DISK = """
import resource, sys
from moe_megatron.testing.history_writer import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
main(__import__("pathlib").Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def test_full_disk_is_reported_once_and_keeps_what_was_written(tmp_path: Path) -> None:
    """The system refuses larger files, as a full disk refuses more: the same error from write."""
    from moe_megatron.testing.history_writer import snapshot

    folder = tmp_path / "history"
    command = [sys.executable, "-c", _FULL_DISK, str(folder), "0", "1000", "20000"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    (warning,) = [line for line in answer.stderr.splitlines() if "sink history failed" in line]
    assert "training goes on, and the sink is tried again" in warning
    assert "cannot be written" in warning
    assert "File too large" in warning
    history = RoutingHistory(folder)
    assert 0 < history.last_step < 1000
    for found in history.snapshots():
        assert np.array_equal(found.tokens_per_expert, snapshot(found.step).tokens_per_expert)


def test_half_written_files_of_a_killed_writer_do_no_harm_and_are_removed(
    write: Write, check: Check, folder: Path
) -> None:
    """With TensorStore's default locking the first of these ends up in the next chunk."""
    write(range(1, 9))
    counts = folder / "tokens_per_expert"
    leftovers = [
        counts / "c.0.0.0.__lock",
        counts / "c.0.0.0_5f.__lock",
        folder / "zarr.json.__lock",
    ]
    for path in leftovers:
        path.write_bytes(b"?" * 50_000)
    write(range(7, 12), start_step=6)
    check(range(1, 12))
    assert not any(path.exists() for path in leftovers)


def test_folder_that_cannot_be_written_is_reported(
    tmp_path: Path, make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    sinks = SinkSet([HistorySink(tmp_path / "file" / "history")])
    sinks.start(make_run())
    assert sinks.flush()
    sinks.close()
    assert "sink history failed" in caplog.text
    assert "cannot be written" in caplog.text
