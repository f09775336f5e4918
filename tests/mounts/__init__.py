"""Tests on real kernel mounts in front of real servers."""
