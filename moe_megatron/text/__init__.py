"""Text to token ids and back: tokenizers, found, trained, and saved beside a model.

Nothing here imports torch, megatron or, unless a tokenizer must be converted, transformers. It
knows neither models nor datasets. Import from the modules.
"""
