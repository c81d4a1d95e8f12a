"""What to do about a bad step: repeat it, skip it, or roll back. One policy is one file."""
