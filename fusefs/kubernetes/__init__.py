"""The Kubernetes side: the node plugin that mounts, and the mounter that serves.

The plugin is small, privileged and knows no store; the mounter has no privilege and runs one keeper
for each mount. Both hold what a mount needs to live on, so that either may end and come back.
"""
