"""Loads through real mounts over an origin that fails in every way there is.

python -m tests.faults [--rounds N] [--minutes N] [--only NAME …] [--long]
"""
