"""Damaged files of either side: a clear error, or the very same result; never another one."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, equal

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.errors import MoEError

MUTATIONS = 60
QUIET = Execution(progress=False, workers=1)


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def drop(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 9) :]


def flip_zip_structure(data: bytes, rng: random.Random) -> bytes:
    """Change a byte of the frame of a record, where no weights are."""
    starts = [match.start() for match in re.finditer(rb"PK\x03\x04", data)]
    at = rng.choice(starts) + rng.randrange(30)
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        (".metadata", flip),
        ("hf/config.json", flip),
        ("__0_0.distcp", flip_zip_structure),
        *(
            pytest.param(*it, marks=pytest.mark.deep)
            for it in (
                (".metadata", truncate),
                (".metadata", drop),
                ("metadata.json", flip),
                ("config.yaml", truncate),
                ("__0_0.distcp", truncate),
            )
        ),
    ],
)
def test_damaged_megatron_checkpoint(
    name: str,
    mutate: Callable[[bytes, random.Random], bytes],
    imported: Path,
    tmp_path: Path,
    tensors: Callable[[Path], dict[str, Tensor]],
) -> None:
    source = Path(shutil.copytree(imported / "release", tmp_path / "source"))
    export_checkpoint(source, tmp_path / "whole", execution=QUIET)
    expected = tensors(tmp_path / "whole")
    whole = (source / name).read_bytes()
    rng = random.Random(3)
    problems, refused = [], 0
    for number in range(MUTATIONS):
        (source / name).write_bytes(mutate(whole, rng))
        out = tmp_path / f"out{number}"
        try:
            export_checkpoint(source, out, execution=QUIET)
        except MoEError as error:
            refused += 1
            if len(str(error)) > 600 or "\n" in str(error):
                problems.append(str(error))
            continue
        found = tensors(out)
        same = found.keys() == expected.keys() and all(
            equal(found[n], v) for n, v in expected.items()
        )
        if not same:
            problems.append(f"mutation {number} was accepted")
        shutil.rmtree(out)
    assert problems == []
    assert refused > MUTATIONS // 20


@pytest.mark.parametrize("mutate", [flip, truncate, drop])
def test_damaged_configuration_of_a_hugging_face_folder(
    mutate: Callable[[bytes, random.Random], bytes], mixtral: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(mixtral, tmp_path / "source"))
    whole = (source / "config.json").read_bytes()
    rng = random.Random(4)
    errors = []
    for number in range(MUTATIONS):
        (source / "config.json").write_bytes(mutate(whole, rng))
        try:
            import_checkpoint(source, tmp_path / f"out{number}", execution=QUIET)
        except MoEError as error:
            errors.append(str(error))
    assert len(errors) > MUTATIONS // 10
    assert all(len(error) < 600 and "\n" not in error for error in errors)
