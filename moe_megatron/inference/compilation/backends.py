"""The backends by name, those that come with the package among them."""

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError
from moe_megatron.inference.compilation import (  # noqa: F401  # they register themselves
    aot_inductor,
    inductor,
    onnx_file,
    tensorrt,
)
from moe_megatron.inference.compilation.backend import Backend, registered


def backend_of(name: str) -> Backend:
    """The backend of a name.

    Raises:
        ConfigError: There is none.
    """
    known = registered()
    if name not in known:
        raise ConfigError(
            f"there is no backend {name!r:.60}.{nearest(str(name), known)} "
            f"Backends are {join_words(sorted(known), 'and')}."
        )
    return known[name]
