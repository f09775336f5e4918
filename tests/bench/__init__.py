"""The bench: how fast a model loads through a mount, beside the link itself and the peers.

Run it with `python -m tests.bench`. It is no test suite: only the pure parts have tests here.
"""
