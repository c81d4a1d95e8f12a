"""Makes Megatron importable, also without a CUDA device, before the tests here import it."""

import moe_megatron.mcore  # noqa: F401
