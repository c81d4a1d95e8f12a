"""Megatron-Core on a machine without CUDA: call `install()` before the first `import megatron`.

An import hook (import_hook.py) gives Megatron's modules their own view of `torch` (torch_view.py).
The real `torch` is never changed, so `torch.cuda.is_available()` stays False for the rest of the
process. With a CUDA device present nothing is installed and nothing is patched. This package does
not import Megatron and knows only the names of the modules it changes.
"""

import sys

from moe_megatron.errors import BackendUnavailableError


def install() -> None:
    """Make later imports of `megatron.*` run on the CPU. Calling it again does nothing.

    Raises:
        BackendUnavailableError: Megatron has already been imported, with the real `torch`.
    """
    from moe_megatron.mcore.cpu import fast
    from moe_megatron.mcore.cpu.emulation import import_hook
    from moe_megatron.mcore.cpu.fast.memory import keep_freed_memory

    if import_hook.is_installed():
        return
    early = sorted(
        name for name in sys.modules if name == "megatron" or name.startswith("megatron.")
    )
    if early:
        raise BackendUnavailableError(
            f"megatron was imported ({early[-1]}) before moe_megatron could prepare it for this "
            "machine, which has no CUDA device; import moe_megatron.mcore before megatron."
        )
    import_hook.install()
    if fast.enabled("allocator"):
        keep_freed_memory()


def is_installed() -> bool:
    """Whether this process runs Megatron through the CPU view of torch."""
    from moe_megatron.mcore.cpu.emulation import import_hook

    return import_hook.is_installed()
