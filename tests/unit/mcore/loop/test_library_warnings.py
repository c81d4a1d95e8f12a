"""Warnings about the libraries' own code go to the log, and those of others to the user."""

import io
import warnings
from pathlib import Path

import megatron.core
import pytest
import torch

from moe_megatron.mcore.loop.library_warnings import library_warnings_to


@pytest.mark.parametrize("library", [torch, megatron.core])
def test_warnings_of_a_library_go_to_the_log(library: object) -> None:
    inside = str(Path(library.__file__).parent / "some" / "module.py")  # type: ignore[attr-defined]
    log = io.StringIO()
    with warnings.catch_warnings(record=True, action="always") as seen:
        shown = warnings.showwarning
        with library_warnings_to(log):
            warnings.warn_explicit("deprecated", FutureWarning, inside, 1)
            warnings.warn_explicit("yours", UserWarning, __file__, 1)
        assert warnings.showwarning is shown
    assert "FutureWarning: deprecated" in log.getvalue()
    assert "yours" not in log.getvalue()
    assert [str(it.message) for it in seen] == ["yours"]
