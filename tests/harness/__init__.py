"""Real servers, mounts and models for tests, the demo and the bench; asserts nothing of fusefs."""
