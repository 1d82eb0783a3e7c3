"""Triton kernels: files named as the operators', whose launchers have the operators' signatures.

None of them has run on a GPU: they run in Triton's interpreter and are compiled ahead of time.
Importing this package does not import Triton; the files do.
"""
