"""A text as one vector, from a model that was made to write."""

import torch


def mean_pooled(model, ids: torch.Tensor) -> list[float]:
    """The mean of the last hidden states over the tokens `ids` [1, tokens], scaled to length 1.

    A causal model's state of a token knows only what stands before it: a model that was made for embeddings does
    better.
    """
    with torch.inference_mode():
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    mean = states[0].float().mean(dim=0)
    return torch.nn.functional.normalize(mean, dim=0).tolist()
