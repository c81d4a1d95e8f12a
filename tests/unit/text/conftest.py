import pytest

from moe_megatron.text.training import train_tokenizer

TEXTS = [
    f"Document {i}: the quick brown fox, x = {i * i}.\n  naive caf\u00e9 \U0001f642"
    for i in range(60)
]


@pytest.fixture(scope="session")
def texts():
    return list(TEXTS)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tok", vocab_size=300)
