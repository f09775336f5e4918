"""Sick mounts, and what the doctor says of them."""
