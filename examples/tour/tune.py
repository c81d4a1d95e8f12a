"""A real language model learns a task: what does this Python function do?

`make tune` runs it: less than ten minutes on two cores, and every step says what it does. With
`--steps 4` it is over sooner, and less is learned. Everything it makes is in `runs/tune`; running
it again makes it anew.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from docstrings import Conversation, conversations, rows
from movement_plot import plot_experts
from real_model import EXPERTS, TOP_K, upcycled_model
from steps import carry_out, minutes, say

from moe_megatron import MoEModel
from moe_megatron.finetuning.task_profile import task_profile
from moe_megatron.peft import ModelAdapters, MoELoRA
from moe_megatron.text.chat_template import chat_template_of

RANK, LEARNING_RATE = 8, 1e-3
LENGTH = 256
"""Tokens of a row of questions and answers, in training and in measuring."""
JUDGED, SHOWN = 60, 3
"""Held-out questions whose answers are measured, and those of which answers are shown."""


def some(held_out: list[Conversation], number: int) -> list[Conversation]:
    """That many conversations, evenly spaced."""
    return [held_out[len(held_out) * it // number] for it in range(number)]


def answers(model: MoEModel, asked: list[Conversation]) -> list[str]:
    """What the model answers to each question, by the likeliest token each time."""
    template = chat_template_of(model.tokenizer)
    prompts = [template.render(question[:1], prompt=True) for question in asked]
    said = model.generate_text(prompts, max_new_tokens=32)
    return [text.removeprefix(prompt).strip() for prompt, text in zip(prompts, said, strict=True)]


def shares(model: MoEModel, judged: list[Conversation]) -> np.ndarray:
    """The part of the tokens that each expert got, [layers, experts]."""
    profile = task_profile(
        model, model.tokenizer, rows(judged), "messages", length=LENGTH, sequences=JUDGED
    )
    counts = profile.tokens_per_expert
    return counts / counts.sum(axis=1, keepdims=True)


def tune(folder: Path, steps: int) -> None:
    """The fine-tuning, step by step."""
    say(
        "Questions with answers",
        "Functions of Python's own library, each without its docstring; the answer is that\n"
        "docstring's first sentence. Every tenth module is held out.",
    )
    train, held_out = conversations()
    judged, asked = some(held_out, JUDGED), some(held_out, SHOWN)
    print(f"{len(train):,} to learn from, {len(held_out):,} held out, such as\n")
    print(asked[0][0]["content"], "->", asked[0][1]["content"], sep="\n")

    say(
        f"A real language model, with {EXPERTS} experts in place of each MLP",
        "SmolLM2 of 135 million parameters, out of a package. Experts are copies of its MLPs,\n"
        f"of which each token visits {TOP_K}. This is how well it predicts held-out answers, and\n"
        "what it answers.",
    )
    upcycled = upcycled_model(folder / "upcycled")
    model = MoEModel.from_pretrained(upcycled, dtype=torch.bfloat16)
    lora = MoELoRA(model, RANK, run_dir=folder / "run")
    how = {"data_format": "messages", "sequence_length": LENGTH}
    before, said_before = lora.evaluate(rows(judged), **how), answers(model, asked)
    used_before = shares(model, judged)
    print(f"loss of held-out answers {before.loss:.3f} ({before.tokens} tokens)")

    say(
        f"Adapters of rank {RANK} on each expert: {steps} steps",
        "Megatron's own loop. The model's weights stay; beside each matrix of an expert two small\n"
        "ones are trained, on answers alone.",
    )
    lora.train(
        rows(train),
        LEARNING_RATE,
        task="instructions",
        max_steps=steps,
        batch_size=4,
        gradient_accumulation_steps=2,
        sequence_length=LENGTH,
    )

    say("Before and after", "The same held-out answers, and the same questions.")
    adapters = ModelAdapters(model)
    adapters.add("docstrings", lora.adapter)
    after = lora.evaluate(rows(judged), **how)
    with adapters.using("docstrings"):
        said_after, used_after = answers(model, asked), shares(model, judged)
    print(f"loss of held-out answers {before.loss:.3f} before, {after.loss:.3f} after")
    for question, *said in zip(asked, said_before, said_after, strict=True):
        print(f"\n{question[0]['content']}\n")
        answer, (was, now) = question[1]["content"], said
        print(f"author  {answer}\nbefore  {was}\nafter   {now}")

    say(
        "Which experts moved",
        "The change of each expert's matrices, |s B A| / |W|; and the part of all tokens, of\n"
        "held-out questions and answers, that each gets more or less than before.",
    )
    moved = torch.stack([*lora.expert_movement().values()]).numpy()
    layers = list(lora.expert_movement())
    picture = plot_experts(moved, used_after - used_before, layers, folder / "experts.png")
    for number in np.argsort(-moved.max(axis=1))[:5]:
        print(
            f"layer {layers[number]:2}"
            + "".join(f"  e{e} {m:5.1%}" for e, m in enumerate(moved[number]))
        )
    lora.save_adapter(folder / "adapter")
    lora.merged().save_pretrained(folder / "tuned")
    report = lora.visualize_routing(folder / "report.html")
    print(f"\nall layers  {picture}\nreport      {report}")
    print(f"adapter     {folder / 'adapter'}\nmodel       {folder / 'tuned'}")

    record = {
        "loss": {"before": before.loss, "after": after.loss},
        "answers": {"before": said_before, "after": said_after},
        "moved": moved.tolist(),
        "shares": {"before": used_before.tolist(), "after": used_after.tolist()},
        "minutes": minutes(),
    }
    (folder / "tune.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="steps to train (default: 30)")
    parser.add_argument("--output", type=Path, default=Path("runs/tune"), help="folder to make")
    options = parser.parse_args()
    return carry_out(lambda: tune(options.output, options.steps), options.output)


if __name__ == "__main__":
    sys.exit(main())
