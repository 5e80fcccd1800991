"""The pure core: what a run is, what happens next and what should be going on. No I/O, no clock, no randomness."""
