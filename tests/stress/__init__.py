"""Readers of every kind on one mount, while pages are pushed, evicted, dropped and reclaimed."""
