"""Bytes: who wants which blocks, who fetches them, where they lie until they are read."""
