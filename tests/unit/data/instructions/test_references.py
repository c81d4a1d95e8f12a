"""What a reference thinks, beside the data: found again, refused if it is another's or damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

import moe_megatron.mcore  # noqa: F401 (before Megatron: prepares it for this machine)
from moe_megatron.data.instructions.references import (
    find_reference,
    reference_file,
    save_reference,
)
from moe_megatron.errors import DataError
from moe_megatron.reading import read_json
from moe_megatron.run.prepared_data import open_instruction_writer

WEIGHTS, OTHER = "0123456789abcdef", "f" * 16
VALUES = np.arange(4, dtype=np.float32).reshape(2, 2)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write(tmp_path / "pairs", 5)
    save_reference(tmp_path / "pairs", WEIGHTS, 32, VALUES)
    return tmp_path / "pairs"


def write(prefix: Path, last: int) -> None:
    writer = open_instruction_writer(prefix, 100)
    for _ in range(2):
        writer.add_pieces([1, 2, 3, 1, 2, last], [1, 2, 1, 2], [0, 1, 2, 3])
    writer.finalize()


def test_it_is_found_for_the_same_reference_pairs_and_rows_alone(prefix):
    found = find_reference(prefix, WEIGHTS, 32)
    assert found is not None
    assert (found == VALUES).all()
    assert find_reference(prefix, WEIGHTS, 64) is None
    assert find_reference(prefix, OTHER, 32) is None
    write(prefix, 6)  # the pairs have changed
    assert find_reference(prefix, WEIGHTS, 32) is None


def test_file_of_another_reference_is_refused(prefix):
    reference_file(prefix, WEIGHTS, 32).rename(reference_file(prefix, OTHER, 32))
    said = rf"is of another reference \(weights {WEIGHTS}, and not {OTHER}\)"
    with pytest.raises(DataError, match=said):
        find_reference(prefix, OTHER, 32)


def test_damaged_file_is_refused(prefix):
    path = reference_file(prefix, WEIGHTS, 32)
    whole = path.read_bytes()
    for content in (whole[:-3], b"\x80\x04.", b"", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            find_reference(prefix, WEIGHTS, 32)


@pytest.mark.parametrize("note", [[], {}, {"weights": 3}, {"weights": "../../etc/passwd"}])
def test_note_that_names_no_reference_is_refused(note, tmp_path):
    from moe_megatron.mcore.loop.reference_pass import noted_reference

    (tmp_path / "note.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match="no fingerprint"):
        noted_reference(read_json(tmp_path / "note.json"))
