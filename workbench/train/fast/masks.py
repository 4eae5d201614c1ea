"""Attention masks that are not needed: rows of one conversation each, padded on the right."""

from contextlib import contextmanager

from transformers import masking_utils


@contextmanager
def one_sequence_per_row():
    """Inside, transformers builds no mask for batches that come without one, and takes the causal path of attention.

    By itself it asks the position ids whether rows hold several sequences, which waits for the GPU, and inside a CUDA
    graph, where it cannot ask, it builds the mask to be safe.
    """
    saved = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = saved
