"""Sweeps: one experiment in thousands of variants."""
