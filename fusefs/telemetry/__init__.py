"""What the mount tells about itself: counters and the log."""
