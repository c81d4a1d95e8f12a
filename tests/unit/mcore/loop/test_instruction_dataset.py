"""Rows of samples as Megatron's dataset: every sample once an epoch, and what each place holds."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import moe_megatron.mcore  # noqa: F401 (before Megatron: prepares it for this machine)
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredSamples
from moe_megatron.run.prepared_data import open_instruction_writer

LENGTH, NUMBER, END = 12, 30, 999


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples that begin with their number, of 3 to 9 tokens; answers begin at the third."""
    prefix = tmp_path_factory.mktemp("data") / "chat"
    writer = open_instruction_writer(prefix, 1000)
    for number in range(NUMBER):
        answer = [100 + it for it in range(number % 7 + 1)]
        writer.add_pieces([number, 50, *answer], [2, len(answer)], [False, True])
    writer.finalize()
    return prefix


@pytest.fixture(scope="module")
def build(prefix):
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.datasets.utils import Split
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    from moe_megatron.mcore.loop.instruction_dataset import InstructionDataset

    def make(samples=NUMBER, split=Split.train, seed=1, rows=None):
        tokenizer = NullTokenizer(vocab_size=1000, eod_id=END)
        config = GPTDatasetConfig(
            random_seed=seed,
            sequence_length=LENGTH,
            split="100,0,0",
            tokenizer=tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
        )
        low = InstructionDataset.build_low_level_dataset(str(prefix), config)
        assert InstructionDataset.numel_low_level_dataset(low) == NUMBER
        return InstructionDataset(low, str(prefix), np.arange(samples), rows, split, config)

    return make


def samples_in(row):
    starts = torch.nonzero((row["position_ids"] == 0) & ~row["padding"]).flatten()
    return [int(row["tokens"][start]) for start in starts]


def test_every_sample_is_in_each_epoch_once_in_another_order(build):
    dataset = build(rows=100)
    number = len(packed_rows(dataset.dataset, LENGTH).rows)
    assert len(dataset) == 100
    epochs = [[samples_in(dataset[e * number + it]) for it in range(number)] for e in range(3)]
    for epoch in epochs:
        assert Counter(it for row in epoch for it in row) == Counter(range(NUMBER))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == [samples_in(build(rows=100)[number + it]) for it in range(number)]
    assert epochs[0] != [samples_in(build(seed=2)[it]) for it in range(number)]


def test_places_hold_what_is_predicted_and_padding(build, prefix):
    stored, dataset = StoredSamples(prefix), build()
    for number in range(len(dataset)):
        row, end = dataset[number], 0
        for sample in samples_in(row):
            ids, learned = stored.sample(sample, 100)
            here = slice(end, end + len(ids) - 1)
            assert row["tokens"][here].tolist() == ids[:-1].tolist()
            assert row["labels"][here].tolist() == ids[1:].tolist()
            assert row["loss_mask"][here].tolist() == learned[1:].tolist()
            assert row["position_ids"][here].tolist() == list(range(len(ids) - 1))
            end += len(ids) - 1
        assert row["padding"].tolist() == [it >= end for it in range(LENGTH)]
        assert row["loss_mask"][end:].sum() == 0
        assert set(row["tokens"][end:].tolist()) <= {END}


def test_a_split_has_its_own_samples(build):
    dataset = build(samples=7)
    assert {it for row in range(len(dataset)) for it in samples_in(dataset[row])} == set(range(7))
