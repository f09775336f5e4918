"""Tests of fusefs/policy."""
