"""Tests of fusefs/engine."""
