"""One run of a bench: trains a case with one seed in Megatron's loop, and measures what came out.

Folders of runs are temporary: what is kept is the record.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_megatron.analytics.analyzer import RouterAnalyzer
from moe_megatron.benchmarks.case import Case, build_model
from moe_megatron.benchmarks.corpus import Corpus
from moe_megatron.benchmarks.record import RunRecord
from moe_megatron.benchmarks.setup import CAPACITY, Setup
from moe_megatron.model.gap import CausalGap, causal_gap
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing
from moe_megatron.telemetry.values.expert_load import part_of_maximum
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.training.results import TrainingResult
from moe_megatron.training.texts import index_texts
from moe_megatron.training.trainer import MoETrainer

_EVALUATIONS = 8
_EVALUATION_BATCHES = 6
_WARM_UP = 5
"""Steps that are left out of a step time."""


def train_and_measure(setup: Setup, case: Case, seed: int, corpus: Corpus) -> RunRecord:
    """Train a case with one seed.

    Raises:
        KeyboardInterrupt: A signal stopped it; nothing is measured then.
        MoEError: It cannot be trained, or diverged.
    """
    began = time.monotonic()
    with _trained(setup, case, seed, corpus) as (model, result):
        tail = [
            it
            for it in read_routing(result.run_dir / ROUTING_FILE)
            if it.step > result.steps - max(1, result.steps // 4)
        ]
        assert model.tokenizer is not None
        rows = corpus.held_out_rows(model.tokenizer, setup.sequence_length)
        gaps = {it: gap_of(model, rows[it], setup.batch_size) for it in rows}
        used = {it: gap.inference_loss for it, gap in gaps.items()}
        loss = _over_domains(used, rows)
        found = specialization(model, rows, setup)
        return RunRecord(
            case=case.to_plain(),
            seed=seed,
            loss=loss,
            causal_gap=_over_domains({it: gap.difference for it, gap in gaps.items()}, rows),
            rerouted=_over_domains({it: gap.changed for it, gap in gaps.items()}, rows),
            domain_loss=used,
            curve=[(it.step, it.loss) for it in result.history.evaluations],
            **routing_facts(tail),
            specialization=found[0],
            chance=found[1],
            parameters=sum(it.numel() for it in model.parameters()),
            seconds=time.monotonic() - began,
        )


def measure_step_time(setup: Setup, case: Case, corpus: Corpus) -> float:
    """The median of a short training's steps, in milliseconds; raises as `train_and_measure`."""
    with _trained(setup, case, 1, corpus, evaluates=False) as (_, result):
        seconds = [it.step_seconds for it in result.history.steps]
        return 1e3 * median(seconds[_WARM_UP:] or seconds)


@contextmanager
def _trained(
    setup: Setup, case: Case, seed: int, corpus: Corpus, *, evaluates: bool = True
) -> Iterator[tuple[MoEModel, TrainingResult]]:
    """A trained model and how that went; the folder of the run is removed afterwards."""
    model = build_model(setup, case, seed)
    with tempfile.TemporaryDirectory(prefix="moe-bench-") as folder:
        trainer = MoETrainer(
            model,
            run_dir=Path(folder) / "run",
            overrides={
                "training.seed": seed,
                "training.eval_steps": _EVALUATION_BATCHES,
                "telemetry.console": False,
                "telemetry.history": False,
            },
        )
        _, tokens = index_texts(corpus.train, trainer.tokenizer, "text")
        epochs = setup.tokens / tokens * (1 - 1e-9)  # not one step more by rounding
        evaluation: dict[str, Any] = {}
        if evaluates:
            interval = max(1, setup.steps // _EVALUATIONS)
            evaluation = {"eval_dataset": corpus.validation, "eval_interval": interval}
        result = trainer.train(
            corpus.train,
            batch_size=setup.batch_size,
            sequence_length=setup.sequence_length,
            learning_rate=setup.learning_rate,
            num_epochs=epochs,
            **evaluation,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        yield model, result


def gap_of(model: MoEModel, rows_RS: Tensor, batch_size: int) -> CausalGap:
    """The causal gap over batches like those of training; its losses are those of the rows.

    Args:
        model: What predicts.
        rows_RS: int64, sequences of one length.
        batch_size: Sequences that are routed together.
    """
    batches = torch.split(rows_RS, batch_size)
    found = [causal_gap(model, batch) for batch in batches]
    shares = [len(batch) / len(rows_RS) for batch in batches]

    def mean(values: Iterable[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    return CausalGap(
        training_loss=mean(it.training_loss for it in found),
        inference_loss=mean(it.inference_loss for it in found),
        changed=mean(it.changed for it in found),
        changed_by_layer={
            layer: mean(it.changed_by_layer[layer] for it in found)
            for layer in found[0].changed_by_layer
        },
    )


def _over_domains(values: Mapping[str, float], rows: Mapping[str, Tensor]) -> float:
    total = sum(len(it) for it in rows.values())
    return sum(values[name] * len(rows[name]) for name in rows) / total


def specialization(
    model: MoEModel, rows: Mapping[str, Tensor], setup: Setup
) -> tuple[float, float]:
    """Normalised mutual information of expert and domain, and what chance gives; layers' means."""
    samples = [
        {"domain": domain, "input_ids": row} for domain, some in rows.items() for row in some
    ]
    found = RouterAnalyzer(model).compute_expert_specialization(
        samples, len(samples), max_length=setup.sequence_length, batch_size=setup.batch_size
    )
    return (
        float(np.nan_to_num(found.normalized_mutual_information).mean()),
        float(np.nan_to_num(found.chance).mean()),
    )


def routing_facts(snapshots: list[RoutingSnapshot]) -> dict[str, float]:
    """Means over steps and layers of what was measured in training, by the names of a record."""
    return {
        "imbalance": fmean(float(np.nanmean(it.imbalance)) for it in snapshots),
        "uncertainty": fmean(
            float(np.nanmean(part_of_maximum(it.per_layer["entropy"], it.num_experts)))
            for it in snapshots
        ),
        "over_capacity": fmean(over_capacity(it) for it in snapshots),
        "drop_rate": fmean(float(np.nanmean(it.drop_rate)) for it in snapshots),
        "experts_per_token": fmean(float(np.nanmean(it.experts_per_token)) for it in snapshots),
    }


def over_capacity(snapshot: RoutingSnapshot, factor: float = CAPACITY) -> float:
    """sum_e max(0, n_e - C) / sum_e n_e, C = factor * tokens * top_k / E, over all layers.

    It is what would be dropped if an expert took C tokens, whichever those are.
    """
    counts_LE = snapshot.tokens_per_expert
    capacity = factor * snapshot.tokens * snapshot.top_k / snapshot.num_experts
    beyond = np.maximum(0.0, counts_LE - np.ceil(capacity)).sum()
    return float(beyond / max(int(counts_LE.sum()), 1))
