"""Runs: their folders, how they are started and resumed, and how they report."""
