"""Hints: verbs, socket, plans."""
