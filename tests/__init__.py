"""Tests of fusefs and loaderhint; `python -m pytest` from the repository's root runs them."""
