"""Dictionaries: sparse autoencoders and transcoders, as pytrees that encode and decode, and their files."""

from jmi import lazy

lazy.attach(__name__)
