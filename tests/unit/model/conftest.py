import pytest
import torch

from moe_megatron.model import MoEModel

VOCAB = 61


@pytest.fixture
def build():
    """Makes a tiny model whose weights are large enough for differences to show."""

    def make(seed=0, **options):
        torch.manual_seed(seed)
        defaults = {
            "hidden_size": 32,
            "num_experts": 4,
            "num_layers": 2,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "expert_hidden_size": 24,
            "ffn_hidden_size": 40,
            "vocab_size": VOCAB,
            "init_std": 0.3,
        }
        return MoEModel(**(defaults | options))

    return make


@pytest.fixture
def tokens():
    """int64 [3, 12] token ids."""
    return torch.randint(0, VOCAB, (3, 12), generator=torch.Generator().manual_seed(5))
