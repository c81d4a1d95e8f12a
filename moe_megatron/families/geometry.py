"""The sizes of a model's architecture, under the short names that rows of a mapping table use.

The shapes of tensors follow from them. Further fields describe what a checkpoint holds in addition
to the tensors of the architecture. This module does not know tensors or families.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_megatron.config import Architecture, LatentAttention, ModelConfig, MoEConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What decides which tensors a model has, and their shapes. Widths are in features."""

    family: str
    """Name of the family that read the configuration."""
    architecture: Architecture
    mtp_copies: bool = False
    """Whether multi-token prediction layers hold copies of embedding and output projection."""
    encoder_moe_layers: tuple[bool, ...] = ()
    """As `moe_layers`, for the encoder of an encoder-decoder model."""
    side_embeddings: bool = False
    """Whether encoder and decoder have embeddings of their own in addition to the shared one."""
    position_buckets: int = 0
    """Rows of the table of relative position biases."""
    layer_kinds: tuple[str, ...] = ()
    """For each decoder layer its kind of attention, where layers differ in it."""
    beyond: Mapping[str, int] = field(default_factory=dict)
    """Sizes of what Megatron does not compute, by the names that rows use."""
    carried: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Names and shapes of tensors that neither transformers nor Megatron computes with."""

    @property
    def _model(self) -> ModelConfig:
        return self.architecture.model

    @property
    def _moe(self) -> MoEConfig:
        return self.architecture.moe

    @property
    def _latent(self) -> LatentAttention | None:
        return self.architecture.model.latent_attention

    @property
    def layers(self) -> int:
        """Decoder layers, not counting multi-token prediction layers."""
        return self._model.num_layers

    @property
    def mtp_layers(self) -> int:
        """Multi-token prediction layers, which follow the decoder layers."""
        return self._model.num_prediction_layers

    @property
    def moe_layers(self) -> tuple[bool, ...]:
        """For each decoder layer whether it is a MoE layer."""
        sparse = self.architecture.moe_layers
        return tuple(number in sparse for number in range(1, self.layers + 1))

    @property
    def homogeneous(self) -> bool:
        """Whether all layers are of one kind, so that Megatron stacks them in one tensor."""
        return all(self.moe_layers) or not any(self.moe_layers)

    @property
    def vocab(self) -> int:
        """Rows of the embedding; a Megatron checkpoint may hold more, as padding."""
        return self.architecture.vocab_size

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self._model.hidden_size

    @property
    def two_hidden(self) -> int:
        """Width of two residual streams concatenated."""
        return 2 * self.hidden

    @property
    def positions(self) -> int:
        """Rows of the table of learned positions; 0: no table."""
        learned = self._model.position_embedding == "learned_absolute"
        return (self._model.max_position_embeddings or 0) if learned else 0

    @property
    def untied(self) -> bool:
        """Whether the output projection has a matrix of its own."""
        return not self._model.tie_embeddings

    @property
    def head_bias(self) -> bool:
        """Whether the model's output projection has a bias."""
        return self._model.lm_head_bias

    # --- attention ---

    @property
    def heads(self) -> int:
        """Query heads."""
        return self._model.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Key/value heads."""
        return self._model.key_value_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self._model.attention_head_dim

    @property
    def q_rows(self) -> int:
        """Features of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Features of all key heads, or of all value heads."""
        return self.query_groups * self.head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of Megatron's combined matrix of queries, keys and values."""
        return self.q_rows + 2 * self.kv_rows

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections of queries, keys and values have a bias."""
        return self._model.add_bias or self._model.qkv_bias

    @property
    def proj_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self._model.add_bias or self._model.attention_output_bias

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalized."""
        return self._model.qk_norm

    @property
    def q_norm_width(self) -> int:
        """Features that the norm of queries spans."""
        return self.q_rows if self._model.qk_norm_scope == "all_heads" else self.head_dim

    @property
    def k_norm_width(self) -> int:
        """Features that the norm of keys spans."""
        return self.kv_rows if self._model.qk_norm_scope == "all_heads" else self.head_dim

    # --- latent attention (MLA) ---

    @property
    def full_rank_q(self) -> bool:
        """Whether attention is latent but its queries have full rank."""
        return self._latent is not None and self._latent.q_lora_rank is None

    @property
    def q_lora(self) -> int:
        """Rank of the queries of latent attention; 0: full rank."""
        return (self._latent and self._latent.q_lora_rank) or 0

    @property
    def kv_lora(self) -> int:
        """Rank of keys and values of latent attention; 0: no latent attention."""
        return self._latent.kv_lora_rank if self._latent else 0

    @property
    def latent_q_rows(self) -> int:
        """Features of all query heads in latent attention."""
        latent = self._latent
        width = latent.qk_head_dim + latent.qk_pos_emb_head_dim if latent else 0
        return self.heads * width

    @property
    def latent_kv_down_rows(self) -> int:
        """Rows of the down projection: latent of keys and values, then the rotated key."""
        return self.kv_lora + (self._latent.qk_pos_emb_head_dim if self._latent else 0)

    @property
    def latent_kv_up_rows(self) -> int:
        """Features of all keys (unrotated part) and values in latent attention."""
        latent = self._latent
        return self.heads * (latent.qk_head_dim + latent.v_head_dim if latent else 0)

    @property
    def latent_out(self) -> int:
        """Features of all value heads in latent attention."""
        return self.heads * (self._latent.v_head_dim if self._latent else 0)

    # --- MLPs and experts ---

    @property
    def ffn(self) -> int:
        """Inner width of a dense MLP."""
        return self._model.dense_ffn_size

    @property
    def two_ffn(self) -> int:
        """Rows of a dense MLP's gate and up projections together."""
        return 2 * self.ffn

    @property
    def mlp_bias(self) -> bool:
        """Whether the linear layers of MLPs have a bias."""
        return self._model.add_bias

    @property
    def experts(self) -> int:
        """Experts of a MoE layer; 0 in a dense model."""
        return self._moe.num_experts or 0

    @property
    def top_k(self) -> int:
        """Experts that a token is sent to; 0 in a dense model."""
        return self._moe.top_k if self.architecture.is_moe else 0

    @property
    def expert_width(self) -> int:
        """Inner width of one expert."""
        return self.architecture.expert_hidden_size

    @property
    def two_expert_width(self) -> int:
        """Rows of an expert's gate and up projections together."""
        return 2 * self.expert_width

    @property
    def shared_width(self) -> int:
        """Inner width of all shared experts together; 0: there are none."""
        return self._moe.shared_expert_hidden_size or 0

    @property
    def two_shared_width(self) -> int:
        """Rows of the shared experts' gate and up projections together."""
        return 2 * self.shared_width

    @property
    def shared_gate(self) -> bool:
        """Whether a gate scales the output of the shared expert."""
        return self._moe.shared_expert_gate and self.shared_width > 0

    @property
    def expert_bias(self) -> bool:
        """Whether a bias corrects the scores that select experts."""
        return self._moe.expert_bias

    def size(self, axis: str | int) -> int:
        """The size of an axis: a number, or the name of one of these properties or of `beyond`."""
        if isinstance(axis, int):
            return axis
        return self.beyond[axis] if axis in self.beyond else int(getattr(self, axis))
