"""Checkpoints between Hugging Face and Megatron, as plans of byte ranges.

A family's table says where each tensor is on the other side (`families`). A plan turns that into
ranges of files and proves that it is complete. Executing the plan needs no model, no GPU, no
process group and only a constant amount of memory. `convert` is the entry point.

The parts of tensors have these names:

    link    one matrix of a Megatron checkpoint (of one layer and expert) and what it is made of
    block   consecutive rows of a Hugging Face tensor; a link has one or more
    term    one summand of a matrix that is a weighted sum; made of blocks, as a link is
    chunk   a part of a tensor that a Megatron checkpoint saved as one record (torch's word)
    record  the bytes of a file that hold one chunk or object, an archive of torch.save
    region  the position of a chunk, or of a rank's tensor, in the matrix of a link
    box     a part of a saved tensor, by offsets and sizes, as Megatron requests it
    view    a matrix in a file: offset, rows, columns and steps
    move    elements of one view that are copied to another; a task consists of moves
"""
