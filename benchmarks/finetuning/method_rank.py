"""One method of fine-tuning in a process of its own: train, then judge by the held-out answers.

Started by ranks.py. The task names a kind of method with its arguments, and the training that all
share. Routers are frozen in all of them, and have no auxiliary loss.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import ranks
from moe_megatron import FineTuner, MoEModel
from moe_megatron.config.adapter import place_of_tensor
from moe_megatron.config.parameter_roles import role_of
from moe_megatron.config.selector import Selector
from moe_megatron.families.matrix_places import by_place
from moe_megatron.mcore import world
from moe_megatron.model.links import links_of
from moe_megatron.peft import MoELoRA

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SPLIT_BY = {"own": (True, True), "shared_a": (False, True), "shared": (False, False)}
"""Whether A, and B, is each expert's own."""


def main() -> None:
    """Run the task of this rank."""
    result = measure(ranks.task())
    ranks.report(result)
    world.leave()


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Train and judge.

    Args:
        task: "kind" ("base" trains nothing), its arguments, the folders and the training.

    Returns:
        Seconds and ends of steps, losses of training and held-out answers, trained numbers.
    """
    torch.manual_seed(task["seed"])
    model = MoEModel.from_pretrained(task["model"], dtype=_TYPES[task["precision"]])
    common: dict[str, Any] = {
        "run_dir": Path(task["folder"]) / "run",
        "overrides": {
            "training.precision": task["precision"],
            "training.seed": task["seed"],
            "moe.aux_loss_coef": 0.0,
            "telemetry.console": False,
        },
    }
    kind = task["kind"]
    make = {"lora": _lora, "tune": _tuner, "base": _base}[kind]
    tuner, trained = make(model, task, common)
    found: dict[str, Any] = {"parameters": model.num_parameters(), **trained}
    if kind != "base":
        result = tuner.train(
            Path(task["train"]),
            task="instructions",
            learning_rate=task["learning_rate"],
            max_steps=task["steps"],
            batch_size=task["batch"],
            sequence_length=task["length"],
        )
        steps = result.history.steps
        found |= {
            "seconds": [it.step_seconds for it in steps],
            "ends": [it.runtime.ended_at for it in steps if it.runtime],
            "losses": [it.loss for it in steps],
            "tokens": steps[0].tokens,
        }
    if isinstance(tuner, MoELoRA) and kind != "base":
        found["trained"] = _distinct(tuner)
    judged = tuner.evaluate(
        Path(task["held_out"]), data_format="messages", sequence_length=task["length"]
    )
    return {**found, "held_out_loss": judged.loss, "held_out_tokens": judged.tokens}


def _base(model: MoEModel, task: Any, common: Any) -> tuple[FineTuner, dict[str, Any]]:
    return FineTuner(model, **common), {}


def _tuner(
    model: MoEModel, task: Mapping[str, Any], common: Mapping[str, Any]
) -> tuple[FineTuner, dict[str, Any]]:
    """Whole matrices: those that are named, or the experts that the task uses."""
    names = list(task["train_parts"])
    tuner = FineTuner(model, train=names, **common)
    if "share" in task:
        chosen = tuner.train_used_experts(
            Path(task["train"]),
            task["share"],
            task="instructions",
            num_sequences=task["calibration"],
        )
        names = [it for it in names if it != "experts"] + [it.selector for it in chosen]
    selectors = [Selector.read(it) for it in names]
    trained = sum(
        link.shape[0] * link.shape[1]
        for place, link in by_place(links_of(model.architecture)).items()
        if any(
            it.matches(place_of_tensor(place, model.model_config.num_layers)) for it in selectors
        )
    )
    return tuner, {"trained": trained}


def _lora(
    model: MoEModel, task: Mapping[str, Any], common: Mapping[str, Any]
) -> tuple[MoELoRA, dict[str, Any]]:
    """Adapters on experts and attention."""
    rank, sharing = task["rank"], task["sharing"]
    own = equal_rank(model, rank, sharing)
    arguments: dict[str, Any] = {
        "r": rank,
        "lora_alpha": task["alpha"],
        "use_rslora": True,
        "target_modules": ["attention", "experts"],
        "expert_wise_adaptation": {"own": True, "shared": False}.get(sharing, sharing),
        "use_qlora": task.get("qlora", False),
    }
    if own != rank:
        arguments["ranks"] = {"experts": own}
    if task.get("experts") == "random":
        arguments["target_modules"] = ["attention", *_random_experts(model, task)]
    elif "experts" in task:
        # The same conversations are read as for ESFT.
        arguments |= {"experts": task["experts"], "profile": _profile(model, task)}
    return MoELoRA(model, **arguments, **common), {"rank_of_experts": own}


def equal_rank(model: MoEModel, rank: int, sharing: str) -> int:
    """The rank of experts with which shared adapters train as many numbers as own ones."""
    matrices = [
        (link.layer, place.rpartition("experts.")[2].partition(".")[2], link.shape)
        for place, link in by_place(links_of(model.architecture)).items()
        if role_of(place) == "experts"
    ]

    def numbers(own_a: bool, own_b: bool) -> int:
        """Trained numbers for each unit of the rank."""
        once = {(layer, name): shape for layer, name, shape in matrices}
        everywhere = [shape for _, _, shape in matrices]
        of_a = everywhere if own_a else once.values()
        of_b = everywhere if own_b else once.values()
        return sum(shape[1] for shape in of_a) + sum(shape[0] for shape in of_b)

    raised = round(rank * numbers(*_SPLIT_BY["own"]) / numbers(*_SPLIT_BY[sharing]))
    return min(raised, *(side for _, _, shape in matrices for side in shape))


def _random_experts(model: MoEModel, task: Mapping[str, Any]) -> Iterable[str]:
    """As many experts of each layer as the rule takes, but any ones."""
    experts = model.moe_config.num_experts
    assert experts is not None
    number = max(1, round(task["part"] * experts))
    rng = np.random.default_rng(task["seed"])
    for layer in model.architecture.moe_layers:
        chosen = sorted(rng.choice(experts, size=number, replace=False).tolist())
        yield str(Selector("experts", (layer,), tuple(chosen)))


def _profile(model: MoEModel, task: Mapping[str, Any]) -> Any:
    from moe_megatron.finetuning.task_profile import task_profile

    tokenizer = FineTuner(model).tokenizer
    return task_profile(
        model,
        tokenizer,
        Path(task["train"]),
        "instructions",
        length=task["length"],
        sequences=task["calibration"],
    )


def _distinct(lora: MoELoRA) -> int:
    """Trained numbers of an adapter; what experts share is one tensor."""
    tensors = [it for low_rank in lora.adapter.values() for it in (low_rank.a, low_rank.b)]
    return sum({id(it): it.numel() for it in tensors}.values())


if __name__ == "__main__":
    main()
