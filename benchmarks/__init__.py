"""Speed of the operators; see ``benchmarks/table.py``."""
