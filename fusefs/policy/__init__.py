"""Pure decisions: no trio, no clock, no I/O. Everything here can be tested with values alone."""
