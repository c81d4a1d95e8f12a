"""What a family does with each field of a Hugging Face configuration: used, checked or irrelevant.

A used field is read by the family's table. A checked one has a single value, or few, that Megatron
and the table compute; any other is refused, for it would be another model. An irrelevant one does
not change what a model computes, and a reason says why. A test fails on a field of transformers'
configuration classes that is none of these. This module knows neither families nor transformers.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moe_megatron.config.checks import first_few, join_words
from moe_megatron.errors import MappingError
from moe_megatron.families.hf_config import HfConfig, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A field that is computed only with certain values; absent or null, it has one of them."""

    hf: str
    """The key in `config.json`."""
    values: tuple[Any, ...]
    """The values that are computed."""
    because: str
    """What is computed, as the end of a sentence."""
    same_as: str = ""
    """Key of another field whose value it must have, in place of `values`."""

    def problem(self, config: HfConfig) -> str | None:
        """A sentence on a value that is not computed; None if it is."""
        given = config.get(self.hf)
        allowed = (config.get(self.same_as),) if self.same_as else self.values
        plain = given.removeprefix("torch.") if isinstance(given, str) else given
        if given is None or any(plain == value for value in allowed):
            return None
        wanted = join_words([shown(value) for value in allowed])
        return f"{self.hf} is {shown(given)}, not {wanted}: {self.because}"


def only(hf: str, *values: Any, because: str) -> Checked:
    """A field that must have one of these values; `because` says what is computed."""
    return Checked(hf=hf, values=values, because=because)


def same_as(hf: str, other: str, *, because: str) -> Checked:
    """A field that must have the value of another one."""
    return Checked(hf=hf, values=(), same_as=other, because=because)


_TYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "auto")

CHECKED = (
    only("hidden_act", "silu", because="MLPs and experts are gated by silu here"),
    only("is_encoder_decoder", False, because="Megatron's GPT has no encoder"),
    only("is_decoder", False, because="a decoder with cross-attention has no place in Megatron"),
    only("add_cross_attention", False, because="there is no cross-attention in Megatron's GPT"),
    only("dtype", *_TYPES, because="weights have one of these types"),
    only("torch_dtype", *_TYPES, because="weights have one of these types"),
    only("pruned_heads", {}, because="heads cannot be missing from one layer only"),
)
"""Checked in every family that says nothing else about the same key."""

_GENERATION = """
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()
_TOKENS = """
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    tokenizer_class prefix
    """.split()
_OUTPUT = """
    output_attentions output_hidden_states output_router_logits return_dict use_cache
    use_return_dict torchscript
    """.split()
_TASKS = """
    id2label label2id num_labels problem_type task_specific_params finetuning_task
    classifier_dropout
    """.split()
_BOOKKEEPING = """
    architectures auto_map transformers_version attn_implementation model_type name_or_path
    chunk_size_feed_forward tf_legacy_loss use_bfloat16 unsloth_fixed unsloth_version
    """.split()

IRRELEVANT: Mapping[str, str] = {
    **dict.fromkeys(_GENERATION, "how text is drawn from probabilities, not what they are"),
    **dict.fromkeys(_TOKENS, "numbers of tokens with a meaning for the tokenizer or generation"),
    **dict.fromkeys(_OUTPUT, "what is returned beside the logits, or kept between tokens"),
    **dict.fromkeys(_TASKS, "for heads other than that of a language model"),
    **dict.fromkeys(_BOOKKEEPING, "notes of transformers; tensors say which classes load them"),
    "pretraining_tp": "splits a matrix product in parts; their sum is the same",
}
"""Irrelevant in every family, with the reason."""

WEIGHT_TYPES = ("dtype", "torch_dtype", "quantization_config")
"""Keys about the types of weights, which every family reads."""


def check(config: HfConfig, checked: Iterable[Checked]) -> None:
    """Refuse a configuration with values that are not computed.

    Raises:
        MappingError: A field has such a value; the message names each.
    """
    found = [problem for entry in checked if (problem := entry.problem(config)) is not None]
    if found:
        raise MappingError(
            f"config.json of a {shown(config.get('model_type'))} model asks for what is not "
            f"computed here, so the result would be another model: {first_few(found, 3)}. Take the "
            "config.json that belongs to the weights, or train the model with transformers."
        )


def unlisted(config: HfConfig, listed: Collection[str]) -> list[str]:
    """Names of fields that have a value, and about which no table says anything.

    Names that begin with an underscore are notes that transformers makes.
    """
    return [
        name
        for name, value in config.items()
        if value is not None and name not in listed and not name.startswith("_")
    ]


def about_unlisted(config: HfConfig, names: Collection[str]) -> str:
    """A sentence about fields that no table lists.

    Raises:
        MappingError: The folder brings code of its own, which alone knows what they mean.
    """
    named = first_few([shown(name, quoted=False) for name in names])
    family = shown(config.get("model_type"), quoted=False)
    if config.get("auto_map"):
        raise MappingError(
            f"config.json has {named}, which no {family} model of transformers knows, and the "
            "model brings code of its own (auto_map) that may read it. If it does not change what "
            "the model computes, remove the key from config.json."
        )
    return (
        f"config.json has {named}, which neither this conversion nor transformers' {family} "
        "models know; if it changes what the model computes, this is another model."
    )
