"""Training: one loop, one task per stage."""
