"""What people give where a `MoEModel` is needed."""

from os import PathLike

from moe_megatron.errors import ConfigError
from moe_megatron.model.moe_model import MoEModel


def model_given(given: object, user: str) -> MoEModel:
    """The model, if it is one.

    Args:
        given: What is given as a model.
        user: Who needs it, for the message.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(given, MoEModel):
        return given
    if isinstance(given, str | PathLike):
        needed = f"the text {str(given)!r:.80}; load it with MoEModel.from_pretrained(...)"
    elif isinstance(given, type):
        needed = f"the class {given.__name__}; build one, such as {given.__name__}(num_layers=2)"
    else:
        needed = (
            f"{type(given).__name__}; MoEModel.from_pretrained(...) reads the folder or the hub id "
            "of a model of transformers"
        )
    raise ConfigError(f"{user} needs a MoEModel, not {needed}.")
