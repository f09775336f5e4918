"""The kernel side: mounting, answering, being asked about oneself. pyfuse3 lives here alone."""
