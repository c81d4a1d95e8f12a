"""Which stages of a pipeline hold the embedding; `test_multi_token_prediction.py` trains them."""

from argparse import Namespace

import pytest
from megatron.training import global_vars

from moe_megatron.errors import TopologyError
from moe_megatron.mcore.loop.stages import check_embeddings, embedding_ranks


def arguments(
    processes: int, layout: str | None, *, virtual: int | None = None, tied: bool = True
) -> Namespace:
    return Namespace(
        pipeline_model_parallel_size=processes,
        virtual_pipeline_model_parallel_size=virtual,
        pipeline_model_parallel_layout=layout,
        untie_embeddings_and_output_weights=not tied,
        mtp_num_layers=1,
    )


@pytest.mark.parametrize(
    ("args", "ranks"),
    [
        (arguments(1, None), [10]),
        (arguments(2, None), [10, 11]),
        (arguments(2, None, tied=False), [10, 11]),
        (arguments(4, "Et|t|m|L"), [10, 12, 13]),
        (arguments(4, "Et|t|m|L", tied=False), [10, 12]),
        (arguments(4, "Et|t|t|mL", tied=False), [10, 13]),
        (arguments(3, "Et|t|t|t|m|L", virtual=2, tied=False), [10, 11]),
        (Namespace(**{**vars(arguments(4, None, tied=False)), "mtp_num_layers": None}), [10, 13]),
    ],
)
def test_copies_of_the_embedding_are_where_it_is_used(
    args: Namespace, ranks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(global_vars, "_GLOBAL_ARGS", args)
    check_embeddings(args)
    assert embedding_ranks([10 + n for n in range(args.pipeline_model_parallel_size)]) == ranks


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (arguments(2, "Et|t|m|L", virtual=2, tied=False), "prediction (m) need"),
        (arguments(2, "Et|tm|t|L", virtual=2), "prediction (m) and the tied output projection (L)"),
    ],
)
def test_a_process_with_two_copies_is_refused(args: Namespace, why: str) -> None:
    with pytest.raises(TopologyError) as error:
        check_embeddings(args)
    message = str(error.value)
    assert message.startswith(
        f"--pipeline-model-parallel-layout {args.pipeline_model_parallel_layout} gives one process "
        "two stages with the embedding, which the first stage, layers for multi-token "
    )
    assert why in message
    assert message.endswith(
        "put them into one stage or on different processes, for example the m before the L."
    )
