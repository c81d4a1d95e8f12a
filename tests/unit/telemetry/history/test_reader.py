import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history import RoutingHistory, sink
from moe_megatron.telemetry.history.layout import SUMS
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

Write = Callable[..., None]
Check = Callable[..., None]
Make = Callable[..., RoutingSnapshot]


def test_windows_hold_the_steps_asked_for(write: Write, folder: Path, make_snapshot: Make) -> None:
    write(range(1, 31))
    history = RoutingHistory(folder)
    assert (history.first_step, history.last_step) == (1, 30)
    assert (history.layers, history.num_experts, history.top_k) == ((2, 3), 4, 2)
    expected = [make_snapshot(step) for step in range(11, 21)]
    for name, window in {
        "tokens_per_expert": history.tokens_per_expert(11, 20),
        "assigned": history.series("assigned", 11, 20),
        "dropped": history.series("dropped", 11, 20),
        "tokens": history.tokens(11, 20),
    }.items():
        assert np.array_equal(window, [getattr(snapshot, name) for snapshot in expected]), name
    assert history.quantities == ("entropy", "aux_loss", "z_loss")
    for name in history.quantities:
        window = history.series(name, 11, 20)
        assert np.array_equal(window, [snapshot.per_layer[name] for snapshot in expected]), name
    assert history.tokens_per_expert().shape == (30, 2, 4)
    assert np.array_equal(
        history.tokens_per_expert(5, 5, layers=[3, 2, 3])[0],
        make_snapshot(5).tokens_per_expert[[1, 0, 1]],
    )


def test_profile_equals_the_sum_of_the_snapshots(
    write: Write, folder: Path, make_snapshot: Make, tmp_path: Path
) -> None:
    write(range(1, 100))
    read = RoutingHistory(folder).profile(20, 90)
    read.save(tmp_path / "read.json")
    RoutingProfile.from_snapshots(map(make_snapshot, range(20, 91))).save(tmp_path / "summed.json")
    assert json.loads((tmp_path / "read.json").read_text()) == json.loads(
        (tmp_path / "summed.json").read_text()
    )


def test_sums_are_those_of_their_steps_also_after_a_resume(
    write: Write, folder: Path, make_snapshot: Make
) -> None:
    write(range(1, 201))
    write(range(150, 701), start_step=149)  # in the middle of a block, and over a chunk of sums
    history = RoutingHistory(folder)
    counts = np.stack([make_snapshot(step).tokens_per_expert for step in range(1, 641)])
    expected = counts.reshape(10, 64, *counts.shape[1:]).sum(axis=1)
    assert np.array_equal(history.sums(1, 640), expected)
    assert np.array_equal(history.sums(129, 192), expected[2:3])
    for first, last in [(2, 64), (1, 65), (641, 700), (641, 704)]:
        with pytest.raises(DataError, match=r"no whole sums of|are not in the routing history"):
            history.sums(first, last)


def test_history_of_an_earlier_version_has_no_sums_and_is_continued(
    write: Write, check: Check, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(sink, "SUM_STEPS", 0)
        write(range(1, 10))
    assert not (folder / SUMS).exists()
    write(range(6, 130), start_step=5)
    check(range(1, 130))
    assert RoutingHistory(folder).sum_steps == 0
    with pytest.raises(DataError, match=r"which has them over 0 steps; read tokens_per_expert"):
        RoutingHistory(folder).sums(1, 64)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 11), (5, 4 - 1), (None, 11), (12, None)])
def test_window_outside_the_history_is_refused(
    write: Write, folder: Path, first: int | None, last: int | None
) -> None:
    write(range(1, 11))
    with pytest.raises(DataError, match=r"steps \d+ to \d+ are not in .*, which has 1 to 10"):
        RoutingHistory(folder).tokens(first, last)


def test_unknown_series_and_layer_are_refused(write: Write, folder: Path) -> None:
    write(range(1, 3))
    history = RoutingHistory(folder)
    with pytest.raises(
        DataError, match=r"no series 'loss' .* has assigned, dropped, entropy, aux_loss"
    ):
        history.series("loss")
    with pytest.raises(DataError, match="layer 1 has no router; the MoE layers are 2, 3"):
        history.tokens_per_expert(layers=[1])


def test_no_history_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no routing history; a training run writes it"):
        RoutingHistory(tmp_path)


def test_damaged_description_names_file_and_remedy(write: Write, folder: Path) -> None:
    write(range(1, 3))
    (folder / "zarr.json").write_text('{"zarr')
    with pytest.raises(DataError, match=r"history/zarr\.json: not valid JSON .* move the folder"):
        RoutingHistory(folder)


def test_missing_or_foreign_array_is_said(write: Write, folder: Path) -> None:
    write(range(1, 3))
    metadata = folder / "entropy" / "zarr.json"
    text = metadata.read_text()
    metadata.write_text(text.replace('"shape":[1024,2]', '"shape":[1024,7]'))
    with pytest.raises(DataError, match=r"entropy is an array \[1024, 7\], but its rows .*\[2\]"):
        RoutingHistory(folder)
    metadata.write_text(text[:50])
    with pytest.raises(DataError, match=r"entropy/zarr.json does not describe an array"):
        RoutingHistory(folder)
    metadata.unlink()
    with pytest.raises(DataError, match=r"cannot be read: .*does not exist\. Restore it") as caught:
        RoutingHistory(folder)
    assert "tensorstore_spec" not in str(caught.value)


def test_flipped_bit_in_a_chunk_is_found(write: Write, folder: Path) -> None:
    write(range(1, 30))
    chunk = folder / "tokens_per_expert" / "c.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[-20] ^= 4
    chunk.write_bytes(content)
    history = RoutingHistory(folder)
    assert history.tokens().size == 29  # other arrays still answer
    with pytest.raises(DataError, match=r"cannot be read: .*tokens_per_expert/c\.0\.0\.0"):
        history.tokens_per_expert()


def test_counts_that_do_not_add_up_name_the_step(write: Write, folder: Path) -> None:
    import tensorstore as ts

    write(range(1, 30))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/dropped/"}}
    ts.open(spec).result()[7, 0].write(1000).result()
    with pytest.raises(DataError, match=r"inconsistent at step 8: layer 2: .* 1000 were dropped"):
        list(RoutingHistory(folder).snapshots())


def test_it_is_plain_zarr(write: Write, folder: Path) -> None:
    """What any Zarr reader relies on: the documented metadata, and nothing hidden."""
    write(range(1, 3))
    metadata = json.loads((folder / "tokens_per_expert" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["shape"] == [1024, 2, 4]
    assert metadata["dimension_names"] == ["step", "layer", "expert"]
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "blosc", "crc32c"]
