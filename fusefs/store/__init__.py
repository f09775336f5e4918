"""Access to buckets: one adapter per kind, all obeying `fusefs.store.base.Store`."""
