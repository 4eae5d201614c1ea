"""Decoding steps as recordings (CUDA graphs): one token of each row, with everything that differs in tensors."""
