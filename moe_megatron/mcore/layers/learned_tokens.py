"""How many tokens of the micro-batch that is computed now are in the loss, for losses of routers.

Of text it is all of them, and nobody asks. The forward step leaves the number here before it calls
the model. It knows no router.
"""

from torch import Tensor

_current: Tensor | None = None


def show_learned_tokens(number: Tensor | None) -> None:
    """Leave the number of a micro-batch.

    Args:
        number: A scalar; None: all tokens.
    """
    global _current
    _current = number


def learned_tokens_here() -> Tensor | None:
    """The number of the micro-batch that is computed now, a scalar; None: all tokens."""
    return _current
