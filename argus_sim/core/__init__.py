"""The serving core: a state machine with no clock and no I/O, shared by the simulated and the live host."""
