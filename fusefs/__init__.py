"""fusefs: remote buckets as local files, for loading model weights at the speed of the link."""

__version__ = "0.1.0"
