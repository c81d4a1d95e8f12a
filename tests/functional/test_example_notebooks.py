"""The notebooks of examples/ run from their first to their last cell, in a kernel of their own."""

import json
import os
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from moe_megatron.testing.distributed import NO_LAUNCHER

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SHOWN = {
    "first_model": ("imbalance by layer", 2),
    "understand_a_router": ("of the largest, dead", 4),
    "watch_a_run": ("80 steps of 4 layers with experts", 1),
    "fine_tune": ("loss of products", 1),
}
"""Text that an output holds, and how many pictures there are at least."""


def test_every_notebook_is_named_by_the_readme_and_is_kept_without_outputs():
    readme = (FOLDER.parents[1] / "README.md").read_text()
    assert {it.stem for it in NOTEBOOKS} == set(SHOWN)
    for path in NOTEBOOKS:
        assert f"examples/notebooks/{path.name}" in readme
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None


@pytest.mark.deep
@pytest.mark.distributed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHOWN)
def test_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {**NO_LAUNCHER, "PYTEST_CURRENT_TEST": None}.items():
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    before = {it.pid for it in psutil.Process().children(recursive=True)}
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    same = f"import sys; assert sys.prefix == {sys.prefix!r}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(same))
    client = NotebookClient(
        notebook,
        timeout=400,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [it for it in outputs if it.output_type == "error"]
    text = " ".join(it.get("text", "") for it in outputs)
    pictures = [it for it in outputs if {"image/png", "image/gif"} & set(it.get("data", {}))]
    said, fewest = SHOWN[name]
    assert said in text
    assert len(pictures) >= fewest
    if name == "watch_a_run":
        frames = [it for it in outputs if "<iframe" in it.get("data", {}).get("text/html", "")]
        assert len(frames) == 1
    left = {it.pid for it in psutil.Process().children(recursive=True)} - before
    assert not left
