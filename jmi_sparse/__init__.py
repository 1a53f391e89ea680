"""Dictionaries and graphs: sparse autoencoders, transcoders and attribution graphs."""
