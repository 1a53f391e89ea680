"""Weights stored in few bits, read as the numbers that they stand for: one file for each kind of them."""
