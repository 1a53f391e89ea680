"""Dictionaries as pytrees: what each kind computes."""
