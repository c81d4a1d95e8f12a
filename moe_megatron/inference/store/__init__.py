"""Where the numbers of experts are, and how they come into memory."""
