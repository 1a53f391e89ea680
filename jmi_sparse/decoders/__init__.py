"""Decoder rows, in memory or on disk, and what is found in them."""
