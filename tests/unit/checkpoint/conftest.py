"""Small checkpoints of both sides, made once, and how tests look at them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.testing.tiny_models import save


@pytest.fixture(scope="package")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral as transformers saves it, experts one by one. Not to be changed."""
    folder = tmp_path_factory.mktemp("mixtral") / "model"
    save("mixtral", folder, fused=False)
    return folder


@pytest.fixture(scope="package")
def imported(mixtral: Path) -> Path:
    """The same as a Megatron checkpoint. Not to be changed."""
    root = mixtral.with_name("megatron")
    import_checkpoint(mixtral, root, execution=Execution(progress=False))
    return root


@pytest.fixture(scope="session")
def tensors() -> Callable[[Path], dict[str, Tensor]]:
    """A function that reads all tensors of a Hugging Face folder."""

    def read(folder: Path) -> dict[str, Tensor]:
        files = folder.glob("*.safetensors")
        return {name: value for file in files for name, value in load_file(file).items()}

    return read
