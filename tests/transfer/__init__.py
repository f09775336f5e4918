"""Tests of fusefs/transfer."""
