"""Formats that hold dictionaries of several layers."""
