"""Sweeps: variants of a recipe, each with several seeds, compared."""
