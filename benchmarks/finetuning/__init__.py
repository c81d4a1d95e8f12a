"""One command for the figures of fine-tuning: what it costs, what it learns, how exact it is.

    python -m benchmarks.finetuning --output benchmarks/results/DATE-finetuning.md

Three stages, each a table:

1. `methods.py`: full fine-tuning of experts and attention, LoRA in several forms, ESFT, MoE-Sieve
   and QLoRA, on one model. All get the same rows in the same order, as many steps, the same
   precision, and a fresh process of their own; what shares adapters has its rank raised until it
   trains as many numbers. The learning rate is the one thing that each kind needs for itself, so it
   stands in the table. Memory is sampled while the steps run, not while a model is loaded.
2. `curves.py`: the losses of the same training under each layout, against one process, in fp32.
3. `beside_peft.py`: the same model, adapter, rows, schedule and optimizer here and in `peft` with
   transformers, in fp32. Adapters begin with the same numbers, because ours are written in PEFT's
   format and loaded there; rows are those that Megatron was given. Left out are adapters of the
   joined matrix of queries, keys and values, which has one A here and three of them in PEFT. Both
   sides take turns, step by step.

The model is the one of `make tour`: SmolLM2 of 135 million parameters, made a Mixture of Experts;
data and questions are those of `examples/tour/docstrings.py`. `--profile tiny` is a smoke test.
"""
