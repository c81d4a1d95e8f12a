"""What the dashboard does at scale: a live run, a long history, and what a training pays for it."""
