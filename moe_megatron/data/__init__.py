"""Text to training data: readers, tokenizer, Megatron indexed datasets, the demo corpus.

Nothing here imports torch or megatron: the package writes through a `DocumentWriter` that the
caller supplies. Import from the modules; this file stays empty so that a start that needs no new
data costs milliseconds.
"""
