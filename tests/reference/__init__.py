"""The reference model: random histories against dictionaries."""
