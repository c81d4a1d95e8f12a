"""What an expert is.

The class is for people and type checkers: any `nn.Module` with these two methods is an expert.
"""

from torch import Tensor, nn


class Expert(nn.Module):
    """A module from rows to rows.

    A subclass, or any other module, defines

        def __init__(self, hidden_size: int, intermediate_size: int, **options)
        def forward(self, x: Tensor) -> Tensor

    `forward` maps [n, hidden_size] to [n, hidden_size], row by row: a row must not depend on the
    others, because which rows come together depends on the layout. n may be 0, and the gradient of
    every parameter is then 0. Options are keyword arguments with defaults, of types that a file can
    hold. Parameters and buffers are floating point, and of at least one axis.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the expert to rows, [n, hidden] to [n, hidden]."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")
