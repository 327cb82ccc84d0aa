"""Comparisons and sweeps, each trained and evaluated alike."""
