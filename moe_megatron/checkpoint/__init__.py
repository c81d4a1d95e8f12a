"""Checkpoints between Hugging Face and Megatron, as plans of byte ranges.

A family's table says where each tensor lies on the other side (`families`); a plan turns that into
ranges of files and proves it complete; executing the plan needs no model, no GPU, no process group
and a constant amount of memory. `convert` is the way in.

Words for parts of tensors, each for one thing:

    link    one matrix of a Megatron checkpoint, of one layer and one expert, and what makes it up
    block   consecutive rows of a Hugging Face tensor; a link has one or several
    term    one of the summands of a matrix that is a weighted sum, made of blocks like a link
    chunk   what a Megatron checkpoint saved in one place; torch's word
    region  where a chunk lies in the matrix of a link
    box     a part of a saved tensor, by offsets and sizes, as Megatron asks for it
    view    a matrix in a file: offset, rows, columns and steps
    move    elements of one view that become those of another; a task is made of moves
"""
