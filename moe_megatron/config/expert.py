"""The experts of a model as data: their kind by name, and its options.

`moe_megatron.experts` knows which kinds exist, which options each takes and their defaults;
`experts.resolve` checks an `ExpertConfig` against them.
"""

from dataclasses import dataclass
from typing import ClassVar

from moe_megatron.config.named import Named


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertConfig(Named):
    """A kind of expert by name.

    Raises:
        ConfigError: The name is not text, or an option is not a value that a file can hold.
    """

    WHAT: ClassVar[str] = "a kind of expert"
    FIELD: ClassVar[str] = "moe.expert"

    name: str = "mlp"
    """Name under which the kind is registered; "mlp" is the MLP of the model itself."""

    @property
    def is_model_mlp(self) -> bool:
        """Whether experts are the MLP that `model.activation` and `model.add_bias` describe."""
        return self.name == "mlp"
