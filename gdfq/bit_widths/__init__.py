"""Bits for each layer within a budget."""
