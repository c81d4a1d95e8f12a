"""The import hook that gives `megatron.*` modules their own `torch`.

Each Megatron module gets a private `__import__`: where the import system would hand it `torch`,
`torch.cuda`, `torch.distributed` or `torch.optim`, it receives the view from torch_view.py. Methods
of tensors cannot be replaced that way, so calls such as `x.cuda()` are rewritten, when the module
is compiled, into calls of functions in tensor_methods.py. The bytecode of rewritten modules has
names of its own on disk, because other programs share the installed package.
"""

import ast
import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from moe_megatron.mcore.cpu.emulation import tensor_methods, torch_view
from moe_megatron.mcore.cpu.emulation.module_fixes import MODULE_FIXES

_METHODS_NAME = "__moe_tensor_methods__"


class _TensorMethodRewriter(ast.NodeTransformer):
    """Turns `x.cuda(...)` into `__moe_tensor_methods__.cuda(x, ...)`; likewise all REWRITTEN."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        function = node.func
        if not isinstance(function, ast.Attribute) or function.attr not in tensor_methods.REWRITTEN:
            return node
        if isinstance(function.value, ast.Call) and _is_super(function.value):
            return node
        self.count += 1
        helper = ast.Attribute(ast.Name(_METHODS_NAME, ast.Load()), function.attr, ast.Load())
        call = ast.Call(helper, [function.value, *node.args], node.keywords)
        return ast.fix_missing_locations(ast.copy_location(call, node))


_OWN = f"moe{zlib.crc32(' '.join(sorted(tensor_methods.REWRITTEN)).encode()):08x}"
"""Part of the names of bytecode files: what was rewritten. Change it when the rewriting changes."""


def _stored_code(path: str, head: bytes) -> CodeType | None:
    """Bytecode of a module that was rewritten before, if the file begins so and is whole."""
    try:
        content = Path(path).read_bytes()
        found = marshal.loads(content[len(head) :]) if content.startswith(head) else None
    except (OSError, EOFError, ValueError, TypeError):
        return None
    return found if isinstance(found, CodeType) else None


def _is_super(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "super"


class _MegatronLoader(importlib.machinery.SourceFileLoader):
    """Executes a Megatron module under the CPU view of torch."""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        if not any(f".{name}(".encode() in source for name in tensor_methods.REWRITTEN):
            return super().get_code(fullname)
        stored = importlib.util.cache_from_source(path, optimization=_OWN)
        head = importlib.util.MAGIC_NUMBER + importlib.util.source_hash(path.encode() + source)
        code = _stored_code(stored, head)
        if code is None:
            rewriter = _TensorMethodRewriter()
            tree = rewriter.visit(ast.parse(source, path))
            if not rewriter.count:
                return super().get_code(fullname)
            code = compile(tree, path, "exec", dont_inherit=True)
            if not sys.dont_write_bytecode:
                self.set_data(stored, head + marshal.dumps(code))
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = _MEGATRON_BUILTINS
        module.__dict__[_METHODS_NAME] = tensor_methods
        super().exec_module(module)
        fix = MODULE_FIXES.get(module.__name__)
        if fix is not None:
            fix(module)


class _MegatronFinder(importlib.abc.MetaPathFinder):
    """Finds `megatron.*` as usual, but with our loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("megatron."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _MegatronLoader(fullname, spec.loader.path)
        return spec


def _import_for_megatron(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    module = builtins.__import__(name, globals, locals, fromlist or (), level)
    if level == 0 and name.partition(".")[0] == "torch":
        return torch_view.view_of(module)
    return module


_MEGATRON_BUILTINS = {**vars(builtins), "__import__": _import_for_megatron}
_finder = _MegatronFinder()


def install() -> None:
    """Put the finder in front of the standard ones."""
    if not is_installed():
        sys.meta_path.insert(0, _finder)


def is_installed() -> bool:
    """Whether the finder is in place."""
    return _finder in sys.meta_path
