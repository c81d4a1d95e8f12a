"""Granite-MoE with a shared expert (Granite 4 without Mamba): gate and up projection in one."""

from dataclasses import replace

from moe_megatron.families.granitemoe import GRANITEMOE
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import LAYER
from moe_megatron.families.settings import Field
from moe_megatron.families.table import Row, Scope, Source, one_to_one

_SHARED = LAYER + "shared_mlp."

GRANITEMOESHARED = replace(
    GRANITEMOE,
    name="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    rows=(
        *GRANITEMOE.rows,
        Row(
            key="mlp.shared_experts.linear_fc1.weight",
            shape=("two_shared_width", "hidden"),
            source=Source((_SHARED + "input_linear.weight",)),
            scope=Scope.MOE,
            gated=True,
            when="shared_width",
        ),
        one_to_one(
            "mlp.shared_experts.linear_fc2.weight",
            _SHARED + "output_linear.weight",
            "hidden",
            "shared_width",
            scope=Scope.MOE,
            when="shared_width",
        ),
    ),
    fields=(
        *GRANITEMOE.fields,
        Field(
            hf="shared_intermediate_size",
            ours="moe.shared_expert_hidden_size",
            default=None,
            read=lambda width, _: width or None,
            write=lambda width, _: width or 0,
        ),
    ),
)

register_family(GRANITEMOESHARED)
