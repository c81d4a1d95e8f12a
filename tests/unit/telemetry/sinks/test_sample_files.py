"""The files of samples: whole, in the right run, and gone with the steps that are made again."""

from dataclasses import replace
from pathlib import Path

import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.sinks.sample_files import (
    SampleFiles,
    paths_with_tokens,
    read_pairs,
    read_sample_head,
    read_top_tokens,
    sample_paths,
    tokens_path,
)
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.records import RunInfo
from moe_megatron.testing.written_run import LAYERS, NUM_EXPERTS, step_sample


def info(run_dir: Path | None, start_step: int = 0) -> RunInfo:
    return RunInfo(
        run_dir=run_dir, total_steps=9, start_step=start_step, num_layers=5,
        num_experts=NUM_EXPERTS, top_k=2, world_size=1, layers=LAYERS, quantities=(),
        description="",
    )  # fmt: skip


@pytest.fixture
def sampled(tmp_path: Path) -> SampleFiles:
    sink = SampleFiles()
    sink.start(info(tmp_path))
    for step in (2, 4, 6):
        sink.sample(step_sample(step))
    return sink


def test_each_sample_is_a_file_that_is_read_by_layer(sampled: SampleFiles, tmp_path: Path) -> None:
    paths = sample_paths(tmp_path)
    assert list(paths) == [2, 4, 6]
    assert read_sample_head(paths[4]).step == 4
    (one,) = read_pairs(paths[4], (3,))
    assert one.layer == 3
    assert one.together.tolist() == step_sample(4).together[1].tolist()
    assert [it.layer for it in read_pairs(paths[4])] == list(LAYERS)


def test_resumed_run_removes_samples_after_its_checkpoint(
    sampled: SampleFiles, tmp_path: Path
) -> None:
    SampleFiles().start(info(tmp_path, start_step=5))
    assert list(sample_paths(tmp_path)) == [2, 4]


def test_rolled_back_run_keeps_what_came_before_even_from_step_0(
    sampled: SampleFiles, tmp_path: Path
) -> None:
    sampled.rewind(info(tmp_path, start_step=2))
    assert list(sample_paths(tmp_path)) == [2]
    sampled.rewind(info(tmp_path, start_step=0))
    assert list(sample_paths(tmp_path)) == []
    assert not (tmp_path / "samples.old").exists()


def test_new_run_sets_the_samples_of_an_earlier_one_aside(
    sampled: SampleFiles, tmp_path: Path
) -> None:
    for _ in range(2):
        again = SampleFiles()
        again.start(info(tmp_path))
        again.sample(step_sample(8))
    assert list(sample_paths(tmp_path)) == [8]
    assert [it.name for it in (tmp_path / "samples.old").iterdir()] == ["0000008.jsonl"]


def test_run_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = SampleFiles()
    sink.start(info(None))
    sink.sample(step_sample(2))
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_run_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    sink = SampleFiles()
    sink.start(info(tmp_path / "run"))
    with pytest.raises(FileNotFoundError):
        sink.sample(step_sample(2))
    assert not (tmp_path / "run").exists()


def test_other_files_in_the_folder_are_no_samples(sampled: SampleFiles, tmp_path: Path) -> None:
    for name in ("x.jsonl", "7.json", "8.jsonl.tmp", "-1.jsonl"):
        (tmp_path / "samples" / name).write_text("")
    assert list(sample_paths(tmp_path)) == [2, 4, 6]


def test_damaged_sample_is_named(sampled: SampleFiles, tmp_path: Path) -> None:
    path = sample_paths(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"0000002\.jsonl: .*; remove the file, or restore"):
        list(read_pairs(path))
    path.unlink()
    with pytest.raises(DataError, match=r"0000002\.jsonl cannot be read"):
        read_sample_head(path)


def test_tokens_are_a_file_of_their_own_that_goes_with_its_sample(tmp_path: Path) -> None:
    sink = SampleFiles()
    sink.start(info(tmp_path))
    for step in (2, 4, 6):
        sink.sample(step_sample(step, tokens=step > 2))
    assert list(sample_paths(tmp_path)) == [2, 4, 6]
    assert list(paths_with_tokens(tmp_path)) == [4, 6]
    found = read_top_tokens(sample_paths(tmp_path)[4], LAYERS[1])
    assert found is not None
    assert found.ids.tolist() == step_sample(4, tokens=True).tokens[1].ids.tolist()
    assert read_top_tokens(sample_paths(tmp_path)[2], LAYERS[1]) is None
    assert read_top_tokens(sample_paths(tmp_path)[4], 99) is None
    SampleFiles().start(info(tmp_path, start_step=5))
    names = sorted(it.name for it in (tmp_path / "samples").iterdir())
    assert names == ["0000002.jsonl", "0000004.jsonl", "0000004.tokens.jsonl"]


def test_damaged_tokens_are_named(tmp_path: Path) -> None:
    sink = SampleFiles()
    sink.start(info(tmp_path))
    sink.sample(step_sample(2, tokens=True))
    path = tokens_path(sample_paths(tmp_path)[2])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(reversed(lines)))
    with pytest.raises(DataError, match=r"tokens\.jsonl: the line of layer 2 is of layer 5"):
        read_top_tokens(sample_paths(tmp_path)[2], 2)
    path.write_bytes(lines[0][:-20])
    with pytest.raises(DataError, match=r"0000002\.tokens\.jsonl: .*; remove the file, or restore"):
        read_top_tokens(sample_paths(tmp_path)[2], 2)


class Counting:
    """A sink that keeps no samples."""

    def start(self, run: RunInfo) -> None: ...

    def step(self, record: object, routing: object) -> None: ...

    def evaluation(self, record: object) -> None: ...

    def close(self) -> None: ...


def test_sinks_that_keep_samples_get_them_and_others_do_not(tmp_path: Path) -> None:
    sinks = SinkSet([Counting(), SampleFiles()])
    sinks.start(replace(info(tmp_path)))
    sinks.sample(step_sample(2))
    sinks.close()
    assert list(sample_paths(tmp_path)) == [2]
