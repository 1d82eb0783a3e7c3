"""Pages about runs: the data, how it is computed, and how it is drawn."""
