"""A mount beside a plain directory: refusals, reads of every kind, and fio's verification."""
