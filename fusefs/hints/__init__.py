"""Hints of loaders: what reaches the daemon through extended attributes and the socket."""
