"""Which processes see tokens that no other one sees, so that no token is counted twice."""

from megatron.core import mpu
from megatron.training import get_args


def sees_own_tokens() -> bool:
    """Whether what this process counts enters a sum over all processes.

    Those of a tensor parallel group have the same tokens, unless they split the sequence.
    """
    sequence_parallel = bool(get_args().sequence_parallel)
    return sequence_parallel or mpu.get_tensor_model_parallel_rank() == 0
