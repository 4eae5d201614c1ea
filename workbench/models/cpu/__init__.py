"""Decoding on the CPU by code in C: products with packed weights, and a step of one row."""
