"""The machine that a run uses, and the choices that follow from it.

It knows devices, compilers, processes and where weights are held. It knows nothing about models,
datasets or metrics.
"""
