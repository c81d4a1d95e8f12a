"""The tokens of a micro-batch where several ranks have parts of them.

A router that looks at a whole batch, such as expert choice, must see the same batch under every
layout. So ranks that share sequences (tensor parallel ones with sequence parallelism, and context
parallel ones) show each other the logits of theirs. Gradients stay with the own tokens, from which
alone the weights of a token come.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class BatchPart:
    """The part of a batch that this rank has.

    Args:
        group: The ranks that share the batch, each with equally many tokens.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank = group.rank()

    def rows(self, length: int) -> tuple[int, int]:
        """The first row of this rank among those of all, and the one after its last.

        Args:
            length: Number of rows of this rank.
        """
        return self.rank * length, (self.rank + 1) * length

    def whole(self, part: Tensor) -> Tensor:
        """The rows of all ranks, [T * ranks, ...], of which the own ones keep their gradient."""
        parts = [torch.empty_like(part) for _ in range(self._group.size())]
        dist.all_gather(parts, part.detach().contiguous(), group=self._group)
        parts[self.rank] = part
        return torch.cat(parts)
