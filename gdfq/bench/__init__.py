"""How long a training step takes, where, and beside what."""
