"""`make demo`: a bucket, a mount, an unmodified loader, and a check of every byte."""
