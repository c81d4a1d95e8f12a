"""Writes docs/verification/<family>.yaml: what is verified for each model family, and what is not.

Everything in a card is measured by this script, with tiny random models (`testing.tiny_models`).

    python tools/verification_cards.py             # all families, a quarter of an hour
    python tools/verification_cards.py mixtral     # only the families named
"""

import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for tests.functional
os.environ["MOE_MEGATRON_DEVICE"] = "cpu"

import torch
import yaml
from safetensors.torch import load_file

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.verify.verification import Options, Verification, verify
from moe_megatron.errors import BackendUnavailableError, MappingError
from moe_megatron.families import FAMILIES, Family, family_of
from moe_megatron.testing import tiny_models
from tests.functional import ladder

CARDS = ROOT / "docs" / "verification"
QUIET = Execution(progress=False)
_NONE = "none: does not train here"
NOT_VERIFIED = (
    "published weights: all models here are tiny and random",
    "Transformer Engine and GPUs: Megatron runs its local layers on a CPU",
)


def main() -> None:
    CARDS.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or {family.name for family in FAMILIES.values()}:
        text = yaml.safe_dump(card(FAMILIES[name]), sort_keys=False, width=96)
        path = CARDS / f"{name}.yaml"
        path.write_text(f"# Written by: python tools/verification_cards.py {name}\n{text}")
        print(path.relative_to(ROOT), flush=True)


def card(family: Family) -> dict[str, Any]:
    names = [n for n, (kind, _) in tiny_models.EXAMPLES.items() if kind == family.name]
    packages = ("torch", "transformers", "megatron-core")
    return {
        "family": family.name,
        "architecture": family.architecture,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "examples": {name: example(name) for name in names},
        "parallel_layouts": _NONE
        if family.untrained
        else parallel_layouts(names[0], is_moe=family.is_moe),
        "not_verified": list(NOT_VERIFIED),
    }


def example(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        round_trips = {layout: round_trip(name, folder / layout) for layout in ("classic", "fused")}
        source, megatron = folder / "classic" / "hf", folder / "classic" / "megatron"
        exact = verify(source, megatron, Options(progress=False))
        rounded = verify(source, megatron, Options(progress=False, precision="bf16"))
        return {
            "round_trip": round_trips,
            "structure_and_weights": passed(exact),
            "logits_fp32": logits(exact),
            "logits_bf16": logits(rounded),
            "differs_in_megatron": list(exact.limits),
            "training": _NONE
            if family_of(HfFolder(source).config).untrained
            else training(folder / "classic", folder / "run"),
        }


def round_trip(name: str, folder: Path) -> str:
    tiny_models.save(name, folder / "hf", fused=folder.name == "fused")
    import_checkpoint(folder / "hf", folder / "megatron", execution=QUIET)
    export_checkpoint(folder / "megatron", folder / "back", execution=QUIET)
    before, after = (tensors(folder / side) for side in ("hf", "back"))
    return comparison(before, after)


def comparison(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> str:
    same = before.keys() == after.keys() and all(
        value.dtype == after[key].dtype and torch.equal(value, after[key])
        for key, value in before.items()
    )
    return f"{len(before)} tensors {'bit-identical' if same else 'DIFFERENT'}"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def passed(found: Verification) -> str:
    assert found.weights is not None, found.structure
    same = not (found.structure or found.checksums or found.weights.differences)
    return f"{found.weights.matrices} matrices {'the same' if same else 'DIFFERENT'}"


def logits(found: Verification) -> dict[str, Any] | str:
    if found.logits is None:
        if FAMILIES[found.family].untrained:
            return _NONE
        return "not compared: an encoder-decoder, of which Megatron has the decoder alone"
    return {
        "positions": found.logits.positions,
        "spread": rounded(found.logits.spread),
        "max_difference": rounded(found.logits.max_difference),
        "mean_difference": rounded(found.logits.mean_difference),
        "top1_agreement": rounded(found.logits.top1_agreement),
    }


def rounded(value: float) -> float:
    return float(f"{value:.2g}")


def training(example: Path, runs: Path) -> dict[str, Any] | str:
    """Losses when training from the converted checkpoint on Megatron's mock data."""
    from moe_megatron.run.history import History
    from moe_megatron.telemetry.sinks.sink_set import SinkSet

    history = History()
    sinks = SinkSet([history])
    overrides = {
        "data.sequence_length": 64,
        "training.train_steps": ladder.STEPS,
        "training.learning_rate": 2e-3,
        "training.micro_batch_size": 16,
        "training.global_batch_size": 16,
    }
    try:
        ladder.run(runs, example, overrides, sinks=sinks)
    except BackendUnavailableError as error:
        return f"not on this machine: {error}"
    finally:
        sinks.close()
    return {"losses": [round(loss, 4) for loss in history.losses if loss is not None]}


def parallel_layouts(name: str, *, is_moe: bool) -> dict[str, Any]:
    """An example loaded by Megatron in every parallel layout: its logits, and what it saves."""
    cases = [(layout, name) for layout in ladder.LAYOUTS if is_moe or "ep" not in layout]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ladder.prepare(folder, [name])
        differences = ladder.measure(folder, cases)
        return {
            layout: {
                "max_difference": rounded(differences[layout, name]),
                "saved": exported(
                    folder / name / "hf", ladder.saved(folder, (layout, name)), folder
                ),
            }
            for layout, _ in cases
        }


def exported(source: Path, checkpoints: Path, folder: Path) -> str:
    """Whether checkpoints export to the tensors that they were imported from."""
    back = folder / "back" / checkpoints.parent.parent.name
    try:
        export_checkpoint(checkpoints, back, execution=QUIET)
    except MappingError as error:
        if "lacks hugging_face." not in str(error):
            raise
        return "not exported: a checkpoint of Megatron holds nothing of the encoder"
    return comparison(tensors(source), tensors(back))


if __name__ == "__main__":
    main()
