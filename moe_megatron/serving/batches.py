"""Transformers' continuous batching, with what a server must know of each step.

Transformers packs all tokens of a step into one row, keeps keys and values in pages, and lets
requests in between steps. Two things are added here: who was in a step, and a step that fails does
not end the batching.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    OutputRouter,
)

from moe_megatron.errors import BackendUnavailableError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAGE = 32
"""Tokens whose keys and values are kept together."""


class _StepError(Exception):
    """A step of the model failed."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


class _Outputs(OutputRouter):  # type: ignore[misc]
    def __init__(self, take: Callable[[Any], None]) -> None:
        super().__init__()
        self._take = take

    def deliver(self, output: Any) -> None:
        self._take(output)

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            self._take(output)


class Batches(ContinuousBatchingManager):  # type: ignore[misc]
    """The batches of one model.

    Args:
        model: A model of transformers whose attention is sdpa.
        processor: Chooses tokens.
        most: Requests in a step.
        context: Tokens of a request, with those that it was given.
        sharing: Whether requests that begin alike share keys and values: with adapters they must
            not, since those depend on them.
        took: Is told what a request has got, on the thread of the batches.
        stepped: Is told which requests will be in a step, and how many tokens of each.
        failed: Is told which requests were in a step that failed, and why; they are no longer here.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: Any,
        *,
        most: int,
        context: int,
        sharing: bool,
        took: Callable[[Any], None],
        stepped: Callable[[Sequence[tuple[str, int]]], None],
        failed: Callable[[Sequence[str], Exception], None],
    ) -> None:
        pages = most * -(-context // PAGE) + 1
        super().__init__(
            model=model,
            generation_config=GenerationConfig(
                do_sample=False, eos_token_id=-1, max_new_tokens=context
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=pages,
                max_batch_tokens=max(2 * PAGE, context, most),
                max_requests_per_batch=most,
                allow_block_sharing=sharing,
                auto_switch_to_flash=model.device.type == "cuda",
            ),
        )
        self.logit_processor = ContinuousBatchingLogitsProcessorList(
            LogitsProcessorList([processor]), drop_unsupported_processors=False
        )
        self.logit_processor.tensors_required = 1  # as many as processors; it counts only its own
        self.output_router = _Outputs(took)
        self._stepped = stepped
        self._failed = failed

    def begin(self) -> None:
        """Start the thread; returns when it takes requests.

        Raises:
            BackendUnavailableError: Transformers has no paged cache for this model.
        """
        self.start()
        while self.batch_processor is None and self.is_running():
            time.sleep(0.005)
        if self.batch_processor is None:
            raise BackendUnavailableError(
                f"transformers' continuous batching cannot serve {type(self.model).__name__} "
                f"({self.background_thread_status.fatal_error}); serve it with vLLM: "
                "`moe-megatron serve MODEL --print-vllm`."
            )

    def at_most(self, requests: int) -> None:
        """Have at most so many requests in a step; on the thread of the batches."""
        self.batch_processor.scheduler.max_requests_per_batch = requests

    def _run_generation_loop(self) -> None:
        with torch.inference_mode():  # a sixth faster than no_grad, which transformers has
            super()._run_generation_loop()

    def _generation_step(self) -> None:
        self._stepped([(it.state.request_id, it.query_length) for it in self._in_step()])
        try:
            super()._generation_step()
        except Exception as error:
            raise _StepError(error) from error

    def _generation_loop_body(self, batch_processor: Any, bootstrapping: bool) -> bool:
        try:
            going_on: bool = super()._generation_loop_body(batch_processor, bootstrapping)
        except _StepError as error:
            names = [it.state.request_id for it in self._in_step()]
            for name in names:
                batch_processor.scheduler.finish_request(name)
            batch_processor.scheduler.block_new_requests = False
            self._failed(names, error.reason)
            return True
        return going_on

    def _in_step(self) -> list[Any]:
        found: list[Any] = self.batch_processor.inputs_and_outputs.requests_in_batch
        return found
