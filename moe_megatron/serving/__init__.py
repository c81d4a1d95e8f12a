"""Serving a model folder to programs: requests in batches that they join and leave between steps.

`batch_engine.py` is the model, on a thread of its own; everything else turns what comes over a wire
into what the engine is asked, and its tokens into answers.
"""
