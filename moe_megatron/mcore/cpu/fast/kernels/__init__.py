"""C kernels for operations that torch is slow at on a CPU.

Each kernel is a C file and the Python file that calls it. It is compiled on the machine that runs
it (compiled.py); where that is impossible, callers use torch. Kernels know tensors and nothing
about Megatron.
"""
