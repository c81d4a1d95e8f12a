"""What code inside `megatron.*` sees of torch, on small modules executed by the real loader.

The loader is used directly and the hook is not installed, so these tests change nothing for the
rest of the process and also run on a machine with a GPU.
"""

import importlib.util
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from moe_megatron.mcore.cpu.emulation import import_hook, tensor_methods, torch_view

Probe = Callable[..., ModuleType]


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """Executes source text as a Megatron module would be executed without CUDA."""

    def execute(source: str, name: str = "megatron.probe") -> ModuleType:
        path = tmp_path / "probe.py"
        path.write_text(textwrap.dedent(source))
        loader = import_hook._MegatronLoader(name, str(path))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module

    return execute


def test_every_way_to_import_torch_gives_the_view(probe: Probe) -> None:
    module = probe(
        """
        import torch
        import torch.cuda
        import torch.distributed as dist
        import torch.cuda.random as rng
        from torch import cuda, optim
        from torch.cuda import is_available
        from torch.distributed import all_gather
        from torch.optim import AdamW

        def lazily():
            import torch
            from torch.cuda import current_device
            return torch, current_device()
        """
    )
    views = {name: torch_view.view_of(real) for name, real in sys.modules.items() if real}
    assert module.torch is views["torch"] is not torch
    assert module.dist is module.torch.distributed is views["torch.distributed"]
    assert module.cuda is module.torch.cuda is views["torch.cuda"]
    assert module.rng is module.torch.cuda.random is views["torch.cuda.random"]
    assert module.optim is views["torch.optim"]
    assert module.AdamW is module.torch.optim.AdamW is not torch.optim.AdamW
    assert module.is_available() is True
    assert module.all_gather is not torch.distributed.all_gather
    assert module.lazily() == (module.torch, torch.device("cpu"))


def test_other_modules_keep_the_real_torch(probe: Probe) -> None:
    module = probe(
        """
        import json
        import torch.nn.functional as functional
        from torch import Tensor, nn
        from torch.nn import Module
        """
    )
    import json

    assert module.json is json
    assert module.functional is torch.nn.functional
    assert (module.Tensor, module.nn, module.Module) == (torch.Tensor, torch.nn, torch.nn.Module)


def test_calls_of_tensor_methods_stay_on_the_cpu(probe: Probe) -> None:
    module = probe(
        """
        import torch

        def calls(x, module):
            return x.cuda(), x.pin_memory(), x.cuda(non_blocking=True), module.cuda(0), x.type()

        def chained(x):
            return (x + 1).cuda().type(torch.float64).pin_memory().sum()
        """
    )
    x, layer = torch.ones(3), torch.nn.Linear(2, 2)
    moved, pinned, again, same_layer, name = module.calls(x, layer)
    assert moved is pinned is again is x
    assert same_layer is layer
    assert name == "torch.cuda.FloatTensor"
    total = module.chained(x)
    assert (total.item(), total.dtype) == (6.0, torch.float64)


def test_receivers_that_are_no_tensor_keep_their_method(probe: Probe) -> None:
    module = probe(
        """
        class Stream:
            def cuda(self, *words, **named):
                return ("own", words, named)
            def type(self, value):
                return ("type", value)
            def pin_memory(self):
                return "pinned"

        def calls(s, *words, **named):
            return s.cuda(*words, **named), s.type(7), s.pin_memory()
        """
    )
    answer = module.calls(module.Stream(), 1, 2, key=3)
    assert answer == (("own", (1, 2), {"key": 3}), ("type", 7), "pinned")


def test_super_call_reaches_the_parent_class(probe: Probe) -> None:
    module = probe(
        """
        class Parent:
            def cuda(self):
                return "parent"

        class Child(Parent):
            def cuda(self):
                return ("child", super().cuda())
        """
    )
    assert module.Child().cuda() == ("child", "parent")


def test_names_that_are_only_read_are_not_rewritten(probe: Probe) -> None:
    module = probe(
        """
        import torch
        bound = torch.ones(1).type
        kind = type(bound)
        memory = torch.cuda
        """
    )
    assert module.bound() == "torch.FloatTensor"
    assert module.kind is type(torch.ones(1).type)


def test_rewritten_calls_work_inside_classes_and_comprehensions(probe: Probe) -> None:
    # Two leading underscores would be mangled in a class if there were none at the end.
    module = probe(
        """
        class Holder:
            def move(self, tensors):
                return [x.cuda() for x in tensors]
        """
    )
    tensors = [torch.ones(1), torch.zeros(1)]
    assert all(a is b for a, b in zip(module.Holder().move(tensors), tensors, strict=True))


def test_traceback_names_the_line_of_the_source(probe: Probe) -> None:
    module = probe(
        """\
        import torch

        def first(x):
            x = x.cuda()
            return x

        def fails(x):
            y = (
                first(x)
                .cuda()
            )
            raise ValueError(y.type())
        """
    )
    with pytest.raises(ValueError, match=r"^torch\.cuda\.FloatTensor$") as caught:
        module.fails(torch.ones(1))
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.name, last.lineno) == ("fails", 12)
    assert last.line == "raise ValueError(y.type())"
    assert last.filename == module.__spec__.loader.get_filename()


def test_bytecode_of_a_rewritten_module_is_found_by_nobody_else(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    probe("def f(x): return x.cuda(), 1")
    assert not list(tmp_path.rglob("*.pyc"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    probe("def f(x): return x.cuda(), 1")
    (stored,) = tmp_path.rglob("*.pyc")
    assert stored != Path(importlib.util.cache_from_source(str(tmp_path / "probe.py")))
    monkeypatch.setattr(import_hook, "_TensorMethodRewriter", None)
    assert probe("def f(x): return x.cuda(), 1").f(torch.ones(1))[1] == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "of another source", "no code"])
def test_bytecode_that_is_not_of_the_source_is_made_again(
    damage: str, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    probe("def f(x): return x.cuda(), 1")
    (stored,) = tmp_path.rglob("*.pyc")
    whole = stored.read_bytes()
    left = {"cut": whole[:-9], "empty": b"", "no code": whole[:12] + b"N"}
    stored.write_bytes(left.get(damage, whole))
    result = 2 if damage == "of another source" else 1
    assert probe(f"def f(x): return x.cuda(), {result}").f(torch.ones(1))[1] == result
    assert (stored.read_bytes() == whole) is (result == 1)


def test_method_names_and_helpers_agree() -> None:
    assert all(callable(getattr(tensor_methods, name)) for name in tensor_methods.REWRITTEN)


def test_finder_answers_for_megatron_only() -> None:
    finder = import_hook._finder
    assert finder.find_spec("torch", None) is None
    assert finder.find_spec("megatron", None) is None
    assert finder.find_spec("megatronish.core", None) is None
    path = importlib.util.find_spec("megatron")
    assert path is not None
    assert path.submodule_search_locations is not None
    spec = finder.find_spec("megatron.core", list(path.submodule_search_locations))
    assert spec is not None
    assert isinstance(spec.loader, import_hook._MegatronLoader)
    assert (
        finder.find_spec("megatron.no_such_module", list(path.submodule_search_locations)) is None
    )


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )


@pytest.mark.deep
def test_install_after_megatron_was_imported_names_the_remedy() -> None:
    answer = run_python(
        """
        import sys, types
        import megatron, megatron.core.package_info
        from moe_megatron.errors import BackendUnavailableError
        for attempt in range(2):
            try:
                import moe_megatron.mcore
            except BackendUnavailableError as error:
                print(error)
        """
    )
    first, second = answer.stdout.splitlines()
    assert first == second
    assert first.startswith("megatron was imported (megatron.")
    assert first.endswith(
        "before moe_megatron could prepare it for this machine, which has no CUDA device; import "
        "moe_megatron.mcore before megatron."
    )


@pytest.fixture(scope="module")
def decisions() -> dict[str, str]:
    """What a fresh interpreter says after each step, by name."""
    answer = run_python(
        """
        import sys
        import torch

        def say(name, *values):
            print(name, *values)

        def import_mcore(has_cuda):
            torch.cuda.is_available = lambda: has_cuda
            for name in [n for n in sys.modules if n.startswith("moe_megatron.mcore")]:
                del sys.modules[name]
            import moe_megatron.mcore
            from moe_megatron.mcore.cpu import emulation
            say(f"cuda={has_cuda}", emulation.is_installed(), "megatron.core" in sys.modules)

        import_mcore(True)
        import_mcore(False)
        from moe_megatron.mcore.cpu import emulation
        from moe_megatron.mcore.cpu.emulation import import_hook
        emulation.install()
        emulation.install()
        finders = [finder is import_hook._finder for finder in sys.meta_path]
        say("twice", finders.count(True), finders[0], "megatron.core" in sys.modules)
        """
    )
    assert answer.returncode == 0, answer.stderr
    return dict(line.split(" ", 1) for line in answer.stdout.splitlines())


def test_install_twice_puts_one_finder_in_front(decisions: dict[str, str]) -> None:
    assert decisions["twice"] == "1 True False"


@pytest.mark.parametrize("has_cuda", [True, False])
def test_mcore_installs_the_hook_exactly_without_cuda(
    has_cuda: bool, decisions: dict[str, str]
) -> None:
    """Only the decision: `mcore/__init__` asks torch and imports nothing of Megatron itself."""
    assert decisions[f"cuda={has_cuda}"] == f"{not has_cuda} False"
