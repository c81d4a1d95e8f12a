"""Which pipeline stages read samples, and which hold the embedding.

The first stage needs tokens and their embedding, the last one labels and, where it is tied to the
embedding, the output projection. Layers for multi-token prediction, which may stand on any one
stage, need the tokens that follow, and a copy of the embedding. A router that looks at token ids
needs them on every stage.
"""

from typing import Any

from megatron.core import mpu
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.training import get_args

from moe_megatron.errors import TopologyError

EVERY_STAGE_READS = "moe_every_stage_reads"
"""Attribute of Megatron's arguments: whether all stages need the tokens."""

Stage = tuple[int, int]
"""A process of the pipeline, and the number of the stage among its own; from 0."""


def check_embeddings(args: Any) -> None:
    """Check that no process holds the embedding on two of its stages.

    Megatron keeps the copies of processes equal, and would wait for ever where one has two.

    Args:
        args: Megatron's arguments.

    Raises:
        TopologyError: One has.
    """
    prediction = _prediction_stages(args)
    if not prediction:
        return
    tied = not args.untie_embeddings_and_output_weights
    holders = {(0, 0), *prediction, *([_last_stage(args)] if tied else [])}
    if len({process for process, _ in holders}) < len(holders):
        raise TopologyError(
            f"--pipeline-model-parallel-layout {args.pipeline_model_parallel_layout} gives one "
            "process two stages with the embedding, which the first stage, layers for multi-token "
            f"prediction (m){' and the tied output projection (L)' if tied else ''} need; put them "
            "into one stage or on different processes, for example the m before the L."
        )


def reads_samples() -> bool:
    """Whether this rank reads samples."""
    if getattr(get_args(), EVERY_STAGE_READS, False):
        return True
    process, last = mpu.get_pipeline_model_parallel_rank(), _last_stage(get_args())[0]
    return process in {0, last, *(it for it, _ in _prediction_stages(get_args()))}


def embedding_ranks(pp_ranks: list[int]) -> list[int]:
    """The ranks of one pipeline whose copies of the embedding are kept equal.

    Args:
        pp_ranks: Its ranks, in the order of their processes.
    """
    args = get_args()
    prediction = {process for process, _ in _prediction_stages(args)}
    # Without prediction layers Megatron asks for the last stage, whether it is tied or not.
    tied = not (prediction and args.untie_embeddings_and_output_weights)
    processes = {0, *prediction, *([len(pp_ranks) - 1] if tied else [])}
    return [pp_ranks[process] for process in sorted(processes)]


def _last_stage(args: Any) -> Stage:
    virtual = args.virtual_pipeline_model_parallel_size or 1
    return args.pipeline_model_parallel_size - 1, virtual - 1


def _prediction_stages(args: Any) -> set[Stage]:
    """The stages with layers for multi-token prediction."""
    layout = args.pipeline_model_parallel_layout
    if not args.mtp_num_layers:
        return set()
    if layout is None:
        return {_last_stage(args)}
    cut = PipelineParallelLayerLayout.from_str(layout, args.pipeline_model_parallel_size)
    return {
        (process, number)
        for process, stages in enumerate(cut.layout)
        for number, stage in enumerate(stages)
        if LayerType.mtp in stage
    }
