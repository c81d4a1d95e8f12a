"""Other people's quantization: run in environments of their own, and checked after that."""
