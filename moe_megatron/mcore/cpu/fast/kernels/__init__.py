"""What torch is slow at on a CPU, in C.

Each kernel is a C file and the Python file that calls it. It is compiled on the machine that runs
it (compiled.py); where that cannot be done, callers take torch. Kernels know tensors, and nothing
of Megatron.
"""
