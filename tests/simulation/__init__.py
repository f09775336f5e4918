"""The seeded simulation: everything at once, on a virtual clock."""
