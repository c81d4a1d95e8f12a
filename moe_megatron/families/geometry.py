"""The sizes of a model, as a Hugging Face configuration gives them.

Rows of a mapping table name these sizes, so that shapes follow from the configuration alone. This
module does not know tensors or families.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What decides which tensors a model has, and their shapes. Widths are in features."""

    family: str
    """Name of the family that read it."""
    layers: int
    """Decoder layers, without those of multi-token prediction."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    groups: int
    """Key/value heads."""
    head_dim: int
    """Width of one head."""
    vocab: int
    """Rows of the embedding; a Megatron checkpoint may hold more, padded ones."""
    ffn: int
    """Inner width of a dense MLP."""
    moe_layers: tuple[bool, ...]
    """For each decoder layer whether it is a MoE layer."""
    experts: int = 0
    """Experts of a MoE layer; 0 in a dense model."""
    top_k: int = 0
    """Experts that a token is sent to."""
    expert_width: int = 0
    """Inner width of one expert."""
    shared_width: int = 0
    """Inner width of the shared experts together; 0: there are none."""
    shared_gate: bool = False
    """A gate weighs the shared expert."""
    expert_bias: bool = False
    """The choice of experts has a correction bias."""
    tied: bool = False
    """Embedding and output projection are one matrix."""
    qk_norm: bool = False
    """Queries and keys are normalized."""
    qkv_bias: bool = False
    """The projections of queries, keys and values have biases."""
    proj_bias: bool = False
    """The output projection of the attention has a bias."""
    mlp_bias: bool = False
    """The linear layers of MLPs have biases."""
    head_bias: bool = False
    """The output projection of the model has a bias."""
    mtp_layers: int = 0
    """Layers of multi-token prediction, behind the decoder layers."""
    mtp_copies: bool = False
    """Those layers hold copies of the embedding and of the output projection."""
    q_lora: int = 0
    """Rank of the queries of latent attention; 0: full rank."""
    kv_lora: int = 0
    """Rank of keys and values of latent attention; 0: no latent attention."""
    nope_dim: int = 0
    """Width of a query or key head that rotation leaves alone (latent attention)."""
    rope_dim: int = 0
    """Width of a query or key head that is rotated (latent attention)."""
    v_dim: int = 0
    """Width of a value head (latent attention)."""
    encoder_moe_layers: tuple[bool, ...] = ()
    """As `moe_layers`, for the encoder of an encoder-decoder model."""
    side_embeddings: bool = False
    """Encoder and decoder have embeddings of their own besides the shared one."""
    position_buckets: int = 0
    """Rows of a table of relative position biases."""

    @property
    def homogeneous(self) -> bool:
        """Whether Megatron stacks the layers of a tensor: all are alike."""
        return all(self.moe_layers) or not any(self.moe_layers)

    @property
    def untied(self) -> bool:
        """The output projection has a matrix of its own."""
        return not self.tied

    @property
    def latent(self) -> bool:
        """Queries, keys and values go through low ranks (MLA)."""
        return self.kv_lora > 0

    @property
    def full_rank_q(self) -> bool:
        """Latent attention whose queries do not go through a low rank."""
        return self.latent and self.q_lora == 0

    @property
    def low_rank_q(self) -> bool:
        """Latent attention whose queries go through a low rank too."""
        return self.q_lora > 0

    @property
    def q_rows(self) -> int:
        """Features of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Features of all key heads, or of all value heads."""
        return self.groups * self.head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of Megatron's matrix of queries, keys and values together."""
        return self.q_rows + 2 * self.kv_rows

    @property
    def latent_q_rows(self) -> int:
        """Features of all query heads in latent attention."""
        return self.heads * (self.nope_dim + self.rope_dim)

    @property
    def latent_kv_down_rows(self) -> int:
        """Rows of the projection down to the latent of keys and values and the rotated key."""
        return self.kv_lora + self.rope_dim

    @property
    def latent_kv_up_rows(self) -> int:
        """Features of all keys (unrotated part) and values in latent attention."""
        return self.heads * (self.nope_dim + self.v_dim)

    @property
    def latent_out(self) -> int:
        """Features of all value heads in latent attention."""
        return self.heads * self.v_dim

    @property
    def two_ffn(self) -> int:
        """Rows of gate and up projection of a dense MLP together."""
        return 2 * self.ffn

    @property
    def two_expert_width(self) -> int:
        """Rows of gate and up projection of an expert together."""
        return 2 * self.expert_width

    @property
    def two_shared_width(self) -> int:
        """Rows of gate and up projection of the shared experts together."""
        return 2 * self.shared_width

    @property
    def two_hidden(self) -> int:
        """Features of two residual streams side by side."""
        return 2 * self.hidden

    def size(self, axis: str | int) -> int:
        """The size of an axis that a row names, or the number itself."""
        return axis if isinstance(axis, int) else int(getattr(self, axis))
