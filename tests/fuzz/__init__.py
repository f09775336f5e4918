"""Hostile input: everything that strangers write and fusefs reads, given bytes nobody foresaw."""
