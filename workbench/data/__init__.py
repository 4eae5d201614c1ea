"""Datasets: what they are (registry), reading rows (formats), templates, and tokens with their mask (encode)."""
