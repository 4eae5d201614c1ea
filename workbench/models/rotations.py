"""OFT on inputs of any number of dimensions.

PEFT 0.21 takes an input with four for an image. Latents of DeepSeek-V2's attention come as one head, so with four, too:
they are joined before.
"""

from peft.tuners.oft import layer as oft

_plain = oft.Linear.forward


def _forward(self, x, *args, **kwargs):
    if x.dim() <= 3:
        return _plain(self, x, *args, **kwargs)
    return _plain(self, x.reshape(-1, x.shape[-1]), *args, **kwargs).view(*x.shape[:-1], -1)


def install() -> None:
    """Let PEFT's OFT of linear layers take them in this process."""
    oft.Linear.forward = _forward
