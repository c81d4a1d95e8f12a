"""The machine a run finds itself on, and what is chosen because of it.

It knows devices, processes, files and how Megatron-Core runs without CUDA. It knows nothing of
models, datasets or metrics.
"""
