"""Names of what comes with the package, for tests of all of it; test files register more."""

from moe_megatron.routing import find_router, router_names

ROUTERS = [
    it for it in router_names() if find_router(it).function.__module__.startswith("moe_megatron.")
]
