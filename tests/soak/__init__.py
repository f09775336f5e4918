"""Mounts made and ended again and again, and one that is used for long: nothing piles up."""
