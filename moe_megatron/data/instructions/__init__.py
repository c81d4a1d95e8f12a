"""Conversations to training data: formats, turns, and which of their tokens are learned.

A row of a file is read by one format into a `Conversation`; a chat template writes that as text;
its tokens are learned where they are answers. Nothing here knows a model or Megatron, and nothing
that it reports holds what a conversation says.
"""
