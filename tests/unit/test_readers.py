"""Nothing that is read from disk runs code: who reads how, and a hostile file for each reader.

The readers of checkpoints are in tests/functional/test_hostile_checkpoint.py; files that lie
without code in them are in test_hostile_files.py and test_lying_files.py.
"""

import ast
import json
import pickle
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

import moe_megatron.mcore  # noqa: F401 (before Megatron: prepares it for this machine)
from moe_megatron.checkpoint.formats.unpickler import load_inert
from moe_megatron.config import load_config
from moe_megatron.data.columnar import open_parquet
from moe_megatron.errors import MoEError
from moe_megatron.text.loading import load_tokenizer
from tests.sources import forget_sources, nodes  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moe_megatron"
PAGE = (ROOT / "docs" / "security.md").read_text()

RISKY = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "builtins.__import__",
    "importlib.import_module",
    "runpy.run_path",
    "runpy.run_module",
    "ctypes.CDLL",
    "torch.load",
    "torch.jit.load",
    "torch.ops.load_library",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "numpy.load",
    "np.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
}
"""Calls, and base classes, that run code of a file or may do so."""

READERS: dict[str, set[str]] = {
    "__init__.py": {"importlib.import_module"},
    "checkpoint/formats/unpickler.py": {"pickle.Unpickler"},
    "chaos/harm.py": {"importlib.import_module"},
    "cli/main.py": {"importlib.import_module"},
    "cli/verbs/slurm/__init__.py": {"importlib.import_module"},
    "config/own_code.py": {"exec", "compile"},
    "data/worker.py": {"pickle.load"},
    "experts/__init__.py": {"importlib.import_module"},
    "families/__init__.py": {"importlib.import_module"},
    "live/notebook.py": {"importlib.import_module"},
    "mcore/cpu/emulation/import_hook.py": {"builtins.__import__", "compile", "marshal.loads"},
    "mcore/cpu/emulation/module_fixes.py": {"importlib.import_module"},
    "mcore/cpu/fast/kernels/compiled.py": {"ctypes.CDLL"},
    "mcore/cpu/fast/memory.py": {"ctypes.CDLL"},
    "mcore/later.py": {"importlib.import_module"},
    "mcore/state/guarded_reading.py": {"pickle.Unpickler"},
    "platform/device.py": {"importlib.import_module"},
    "platform/parent.py": {"ctypes.CDLL"},
    "routing/__init__.py": {"importlib.import_module"},
}
"""The files that may, each explained in docs/security.md."""


def names(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """What a file calls and inherits from, as written."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node
        elif isinstance(node, ast.ClassDef):
            yield from ((ast.unparse(base), node) for base in node.bases)


def product() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "testing" not in p.parts]


def test_only_listed_files_use_what_may_run_code() -> None:
    found: dict[str, set[str]] = {}
    for path in product():
        if risky := {name for name, _ in names(path)} & RISKY:
            found[str(path.relative_to(PACKAGE))] = risky
    assert found == READERS


def test_risky_names_are_imported_under_no_other_name() -> None:
    modules = {name.rpartition(".")[0] for name in RISKY} - {"np", ""}
    hidden = [
        f"{path}:{node.lineno}"
        for path in product()
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.module in modules
        if any(f"{node.module}.{alias.name}" in RISKY for alias in node.names)
    ]
    assert hidden == []


def test_nobody_trusts_code_of_a_model() -> None:
    for path in product():
        for name, node in names(path):
            words = {word.arg: word.value for word in getattr(node, "keywords", [])}
            trust = words.get("trust_remote_code")
            assert trust is None or ast.unparse(trust) == "False", path
            if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")):
                assert trust is not None, f"{path}: {name} without trust_remote_code=False"


def test_page_names_every_reader() -> None:
    missing = [name for name in READERS if f"`{Path('moe_megatron') / name}`" not in PAGE]
    assert missing == []


PLAIN = {
    "read_text",
    "read_bytes",
    "json.load",
    "json.loads",
    "open",
    "np.memmap",
    "np.fromfile",
    "mmap.mmap",
    "safe_open",
    "yaml.compose",
    "yaml.safe_load",
    "parquet.ParquetFile",
    "datasets.load_from_disk",
    "datasets.load_dataset",
    "Tokenizer.from_buffer",
    "AutoTokenizer.from_pretrained",
    "gzip.open",
    "ts.open",
    "ts.KvStore.open",
}
"""Calls that open or parse a file."""

TRUSTED = {
    "benchmarks/tables.py": "the kernel's /proc",
    "chaos": "looks at the training that it has started and harms",
    "cli/main.py": "the package's own source",
    "config/loader.py": "presets of the package; others by reading.py",
    "dashboards/build.py": "compares files with what it would write",
    "dashboards/local_prometheus.py": "the log of a process that it started",
    "data/demo_corpus.py": "the standard library's source",
    "files.py": "writes",
    "mcore/cpu/fast/kernels/compiled.py": "the package's own source, and the kernel's /proc",
    "mcore/cpu/fast/shared_memory.py": "memory that ranks of the same job share",
    "mcore/evaluation/earlier.py": "a message of another rank; a file by telemetry/sinks/jsonl.py",
    "mcore/recovery/watchdog.py": "writes",
    "mcore/tuning/adapters/whole_adapters.py": "a message of another rank of the same job",
    "platform/death_clock.py": "the kernel's /proc",
    "platform/free_memory.py": "the kernel's /proc and /sys",
    "platform/memory_kills.py": "the kernel's /proc and /sys",
    "run/rank_process.py": "appends to its log",
    "platform/processes.py": "the kernel's /proc",
    "platform/slurm/node_health.py": "the kernel's /proc and /sys",
    "platform/slurm/submit.py": "appends; reads by reading.py",
    "reading.py": "the guard itself",
    "run/attempts.py": "appends to its log",
    "run/rank_folder.py": "a message of another rank of the same job",
    "text/demo.py": "merges of the package",
    "webapp/built_page.py": "the package's own page",
}
"""Files and folders of the package with such calls on what nobody else writes, and on what."""


def _calls(path: Path) -> set[str]:
    """Which of `PLAIN` a file calls, with methods of paths by their name alone."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Call):
            whole = ast.unparse(node.func)
            name = whole.rpartition(".")[2]
            method = name in {"read_text", "read_bytes"} and "." in whole
            opens = name == "open" and not whole.startswith(("os.", "self.", "webbrowser."))
            if whole in PLAIN - {"read_text", "read_bytes"} or method or opens:
                found.add(whole)
    return found


def _imports_reading(path: Path) -> bool:
    imports = (node for node in nodes(path) if isinstance(node, ast.ImportFrom))
    return any(node.module == "moe_megatron.reading" for node in imports)


def readers_of_files() -> list[str]:
    """The files of the package that read what somebody else may have written."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        trusted = name in TRUSTED or name.split("/")[0] in {"chaos", "testing"}
        if _imports_reading(path) or (_calls(path) and not trusted):
            found.append(name)
    return found


def test_page_has_a_row_with_a_test_for_every_reader() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    missing = [
        name
        for name in readers_of_files()
        if not any(f"`moe_megatron/{name}`" in row and "`tests/" in row for row in rows)
    ]
    assert missing == []


def test_tests_that_the_page_names_exist() -> None:
    named = {word for word in PAGE.split("`") if word.startswith("tests/")}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_trusted_files_still_read() -> None:
    stale = [name for name in TRUSTED if name != "chaos" and not _calls(PACKAGE / name)]
    assert stale == []


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return shutil.copyfile, (__file__, str(self.mark))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that code would make; it must not be there in the end."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists()


def test_payload_works(tmp_path: Path) -> None:
    """Without a guard the code runs, or the other tests would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "made")))
    assert (tmp_path / "made").exists()


def test_pickles_of_checkpoints_construct_nothing(mark: Path) -> None:
    with pytest.raises(MoEError, match=r"names shutil\.copyfile, which no Megatron checkpoint"):
        load_inert(pickle.dumps(Payload(mark)), "it")


def test_yaml_of_a_run_constructs_nothing(mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"run_dir: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(MoEError, match=r"run\.yaml: line 1 is not valid YAML"):
        load_config(file)


def test_index_of_megatron_is_read_by_an_unpickler_that_refuses(mark: Path, tmp_path: Path) -> None:
    from megatron.core.safe_globals import safe_numpy_load

    plain, array = tmp_path / "plain.npy", tmp_path / "array.npy"
    plain.write_bytes(pickle.dumps(Payload(mark)))
    np.save(array, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(pickle.UnpicklingError, match="Failed to interpret file"):
        safe_numpy_load(plain, allow_pickle=True, mmap_mode="r")
    with pytest.raises(ValueError, match="Python objects"):
        safe_numpy_load(array, allow_pickle=True, mmap_mode="r")


def test_megatrons_datasets_read_indices_in_no_other_way() -> None:
    import megatron.core.datasets as datasets

    for path in Path(datasets.__path__[0]).glob("*.py"):
        found = {name for name, _ in names(path)} & (RISKY - {"compile", "eval"})
        assert found <= {"importlib.import_module"}, path


def test_torch_reads_weights_only(mark: Path) -> None:
    """For checkpoints in the older format "torch", and the common part of all others."""
    file = BytesIO()
    torch.save(Payload(mark), file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file)


def test_tokenizer_with_code_is_refused(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokens.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Tokens: pass\n")
    code = {"tokenizer_class": "Tokens", "auto_map": {"AutoTokenizer": ["tokens.Tokens", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(code))
    with pytest.raises(MoEError, match="transformers could not load it"):
        load_tokenizer(folder, cache_dir=tmp_path / "cache")


def test_types_in_parquet_run_no_code(mark: Path, tmp_path: Path) -> None:
    hostile = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Payload(mark)),
    }
    schema = pa.schema([pa.field("text", pa.string(), metadata=hostile)])
    file = tmp_path / "texts.parquet"
    parquet.write_table(pa.table({"text": ["a"]}, schema=schema), file)
    # Arrow takes the type for an unknown one and gives its plain values.
    assert open_parquet(str(file)).read().column("text").to_pylist() == ["a"]
