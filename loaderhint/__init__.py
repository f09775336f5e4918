"""loaderhint: what a weight loader and fusefs agree on. Standard library only."""
