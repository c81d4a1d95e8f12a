"""Whether the adapters that a configuration asks for fit the model, before any model is built.

It knows the matrices of models that `MoEModel` computes. Of others, and of what a layout changes,
Megatron's side tells (`mcore/tuning/adapters/attach.py`).
"""

from moe_megatron.config import AdapterConfig, Architecture
from moe_megatron.config.adapter import WITH_MATRICES, place_of_tensor
from moe_megatron.errors import ConfigError
from moe_megatron.families.matrix_places import by_place
from moe_megatron.model.links import links_of
from moe_megatron.model.support import check_supported


def check_fitting(config: AdapterConfig, architecture: Architecture) -> None:
    """Refuse adapters of matrices that the model does not have, or of ranks that are too large.

    Raises:
        ConfigError: A selector names no matrix, or a rank is larger than one.
    """
    if not config.on:
        return
    try:
        check_supported(architecture)
    except ConfigError:  # Megatron may have it all the same
        return
    found = {
        place: link.shape
        for name, link in by_place(links_of(architecture)).items()
        if (place := place_of_tensor(name, architecture.model.num_layers)).role in WITH_MATRICES
    }
    for field, selector in config.selectors():
        if not any(map(selector.matches, found)):
            raise ConfigError(config.without_matrix(field, selector, found))
    for place, (outputs, inputs) in found.items():
        if problem := config.too_large(place, outputs, inputs):
            raise ConfigError(problem)
