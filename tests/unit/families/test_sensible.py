"""Numbers that no model has are refused by name, before memory or time is spent on them."""

from typing import Any

import pytest

from moe_megatron.errors import MappingError
from moe_megatron.families import family_of
from moe_megatron.testing import tiny_models


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixtral", {"rms_norm_eps": 2.5}, "rms_norm_eps as 2.5, which no model has; it must be"),
        ("mixtral", {"rms_norm_eps": 0.0}, "rms_norm_eps as 0.0, which no model has"),
        ("mixtral", {"rms_norm_eps": -1e-6}, "rms_norm_eps as -1e-06, which no model has"),
        ("mixtral", {"initializer_range": 1e6}, "initializer_range as 1000000.0, which no"),
        ("mixtral", {"max_position_embeddings": 10**30}, "and less than 2,147,483,648"),
        ("mixtral", {"max_position_embeddings": -1}, "max_position_embeddings as -1; a whole"),
        ("mixtral", {"rope_parameters": {"rope_theta": 1e30}}, "rope_theta as .*, which no model"),
        ("mixtral", {"dtype": "int3"}, "dtype is 'int3', not 'bfloat16', 'float16'"),
        ("mixtral", {"torch_dtype": "torch.qint8"}, "torch_dtype is 'torch.qint8', not"),
        ("mixtral", {"router_aux_loss_coef": -5.0}, "router_aux_loss_coef as -5.0, which no"),
        ("deepseek_v3", {"routed_scaling_factor": 1e9}, "routed_scaling_factor as .*, which no"),
        ("granitemoe", {"logits_scaling": 0.0}, "logits_scaling as 0.0, which no model has"),
        (
            "mixtral",
            {"num_hidden_layers": 4000, "num_local_experts": 60000},
            "4000 layers of 60000 experts each, which no model has",
        ),
        ("switch_transformers", {"num_layers": 10**9}, "1000000000 layers of the encoder; at most"),
        ("qwen3_moe", {"mlp_only_layers": ["x"]}, "gives 'x' in mlp_only_layers; numbers of"),
        ("qwen3_moe", {"mlp_only_layers": [{}]}, "gives {} in mlp_only_layers; numbers of"),
    ],
)
def test_number_without_sense_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    config = tiny_models.hf_config(name).to_dict() | changes
    with pytest.raises(MappingError, match=message):
        family_of(config).geometry(config)
