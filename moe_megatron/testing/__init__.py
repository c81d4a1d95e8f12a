"""Real distributed runs of tiny models, for the tests of this project and of its users.

    from moe_megatron.testing.distributed import run_distributed

    def total(number: int) -> int:
        dist.init_process_group("gloo")
        tensor = torch.tensor(number + dist.get_rank())
        dist.all_reduce(tensor)
        return int(tensor)

    def test_two_processes_add_up() -> None:
        assert run_distributed(total, 10, world_size=2) == [21, 21]

Every rank is a process of its own, forked in milliseconds from a server that has already imported
torch and Megatron (`fork_server`). Only tests import this package.
"""

from typing import Any

__all__ = ["RouterError", "check_router"]


def __getattr__(name: str) -> Any:
    """Import the conformance of routers, and torch with it, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moe_megatron.testing import conformance

    return getattr(conformance, name)
