"""`TextModel`: a language model that has a tokenizer and continues texts.

How tokens are chosen is in `generation`, how texts become tokens in `text`; how models are built,
saved and loaded is `moe_model`'s.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_megatron.config.arguments import explained
from moe_megatron.errors import DataError
from moe_megatron.model import generation, inputs, text
from moe_megatron.model.evaluating import evaluating
from moe_megatron.model.language_model import LanguageModel
from moe_megatron.model.moe_layer import MoELayer
from moe_megatron.model.support import check_continues
from moe_megatron.text.loading import find_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@explained
class TextModel(LanguageModel):
    """A language model with a tokenizer."""

    _tokenizer: Tokenizer | None = None
    _unusable: str | None = None
    """Why the tokenizer in the model's folder is not used."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, which is saved with the model and found again; None if it has none.

        Set it to a tokenizer folder, a hub id, a `Tokenizer` or a fast tokenizer of transformers.
        """
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, given: Any) -> None:
        """Give the model a tokenizer.

        Raises:
            DataError: It cannot be read, or has more tokens than the model.
        """
        self._tokenizer = None if given is None else text.fitting_tokenizer(given, self.vocab_size)

    def generate_text[Text: (str, list[str])](
        self,
        prompt: Text,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        *,
        stop_at_end: bool = True,
        generator: torch.Generator | None = None,
        allow_batch_dependent: bool = False,
    ) -> Text:
        """Continue text, in evaluation mode.

        Args:
            prompt: A text, or a list of texts that are continued together. The model's tokenizer
                puts in front what the model expects there, such as a token that begins a text.
            max_new_tokens: Maximum number of tokens to append.
            temperature: 0 takes the most probable token; higher values sample more evenly.
            top_k: Sample only among the k most probable tokens; None samples among all.
            stop_at_end: End a text where the model ends the document.
            generator: Source of randomness for sampling.
            allow_batch_dependent: As for `generate`.

        Returns:
            The prompt and its continuation; of a list, a list.

        Raises:
            ConfigError: The model has no tokenizer, a value is out of range, or experts depend on
                other tokens.
            DataError: A prompt is no text, or does not fit the model.
        """
        tokenizer = text.require_tokenizer(self._tokenizer, self._unusable)
        generate = partial(
            self.generate,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            eos_token_id=tokenizer.eod_id if stop_at_end else None,
            generator=generator,
            allow_batch_dependent=allow_batch_dependent,
        )
        return text.continued(
            prompt,
            lambda ids, valid: generate(ids, attention_mask=valid),
            tokenizer,
            self.embed_tokens.weight.device,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        eos_token_id: int | None = None,
        *,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        allow_batch_dependent: bool = False,
    ) -> Tensor:
        """Continue each row, in evaluation mode, with a cache of earlier keys and values.

        With `capacity_factor`, the capacity of an expert depends on the tokens computed together,
        so results can differ from those of `forward` over the whole text, and those of a row from
        those of its prompt alone.

        Args:
            input_ids: int64 [batch, seq], prompts.
            max_new_tokens: Maximum number of tokens to append.
            temperature: 0 takes the most probable token; higher values sample more evenly.
            top_k: Sample only among the k most probable tokens; None samples among all.
            eos_token_id: Ends a row, whose remainder is filled with it.
            attention_mask: [batch, seq], 0 for padding on the left of shorter prompts.
            generator: Source of randomness for sampling.
            allow_batch_dependent: Generate also where the experts of a token depend on other tokens
                that are computed with it, later ones included: the continuation is then not the
                one that the model predicts for the whole text.

        Returns:
            int64 [batch, seq + new]: prompts and continuations.

        Raises:
            ConfigError: A value is out of range, or experts depend on other tokens.
            DataError: Shapes or ids are wrong, or a row ends in padding.
        """
        limit = self._max_length
        limit = None if limit is None else limit - max_new_tokens
        inputs.check_tokens(input_ids, self.vocab_size, limit)
        choose = generation.sampler(temperature, top_k, generator)
        if not allow_batch_dependent:
            check_continues(self.moe_config)
        with evaluating(self):
            return generation.continue_tokens(
                self._next_logits,
                input_ids,
                max_new_tokens,
                valid=inputs.valid_tokens(attention_mask, input_ids),
                choose=choose,
                eos_token_id=eos_token_id,
                group=self.expert_parallel_group,
            )

    @property
    def expert_parallel_group(self) -> dist.ProcessGroup | None:
        """The processes that share the experts; None if all are here."""
        return next((layer.experts.process_group for layer in self._moe_layers()), None)

    def _find_tokenizer(self, folder: Path) -> None:
        """Take the tokenizer that lies in the model's folder; one of no use is no fault of it."""
        try:
            self._tokenizer = find_tokenizer(folder)
        except DataError as error:
            logger.warning("the model has no tokenizer: %s", error)
            self._unusable = str(error)

    def _moe_layers(self) -> list[MoELayer]:
        return [part for part in self.modules() if isinstance(part, MoELayer)]
