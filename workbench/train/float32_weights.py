"""Float32 copies of bfloat16 weights that are trained: "master weights" (Micikevicius et al. 2018, arXiv:1710.03740).

bfloat16 has 8 bits for the digits of a number, so a step below a 512th to a 256th of a weight is rounded away. The
model computes with its bfloat16 weights as before; the optimizer steps on float32 copies, and the weights are these,
rounded.
"""

from collections.abc import Iterator

import torch
from torch import nn

_AT_ONCE = 256 << 20  # bytes of float32 gradients that exist at a time


def without_copies(state_dict: dict) -> dict:
    """The state of an optimizer alone, of one that may have been saved with float32 copies."""
    return state_dict.get("inner", state_dict)


class Float32Weights(torch.optim.Optimizer):
    """An optimizer on float32 copies of the bfloat16 weights of another one's groups, which it steps.

    Weights in other formats stay as they are. The copies are part of the state: a checkpoint has them in full. Only a
    few parameters have a float32 gradient at a time, so an optimizer whose parameters depend on each other's gradients
    cannot be used.
    """

    def __init__(self, inner: torch.optim.Optimizer):
        self.inner = inner
        self._weights: dict[nn.Parameter, nn.Parameter] = {}  # copy -> weight
        for group in inner.param_groups:
            group["params"] = [self._copied(weight) for weight in group["params"]]
        super().__init__(inner.param_groups, {})

    def _copied(self, weight: nn.Parameter) -> nn.Parameter:
        if weight.dtype is not torch.bfloat16:
            return weight
        copy = nn.Parameter(weight.detach().to(torch.float32))
        self._weights[copy] = weight
        if weight in self.inner.state:  # some have a state from the start: APOLLO a seed, Adagrad its sums
            state = self.inner.state.pop(weight)
            half = {key for key, value in state.items() if getattr(value, "dtype", None) is torch.bfloat16}
            self.inner.state[copy] = {k: value.to(torch.float32) if k in half else value for k, value in state.items()}
        return copy

    @property
    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """`(copy, weight)` in the order of the groups."""
        return list(self._weights.items())

    @property
    def copies(self) -> list[nn.Parameter]:
        """The float32 copies, in the order of the groups."""
        return list(self._weights)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                weight = self._weights.get(parameter, parameter)
                if set_to_none:
                    weight.grad = None
                elif weight.grad is not None:
                    weight.grad.zero_()

    def _parts(self) -> Iterator[tuple[dict, list[nn.Parameter]]]:
        """Each group's parameters, as many at a time as their gradients may take."""
        for group in self.param_groups:
            part, size = [], 0
            for parameter in group["params"]:
                part.append(parameter)
                size += 4 * parameter.numel()
                if size >= _AT_ONCE:
                    yield group, part
                    part, size = [], 0
            if part:
                yield group, part

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = list(self._parts())
        groups = [(group, group["params"]) for group in self.param_groups]
        try:
            for group, _ in groups:
                group["params"] = []
            for group, part in parts:
                group["params"] = part
                self._step(part)
                group["params"] = []
        finally:
            for group, parameters in groups:
                group["params"] = parameters
        return loss

    def _step(self, part: list[nn.Parameter]) -> None:
        pairs = [(copy, self._weights[copy]) for copy in part if copy in self._weights]
        for copy, weight in pairs:
            copy.grad = None if weight.grad is None else weight.grad.to(torch.float32)
        self.inner.step()
        stepped = [(copy, weight) for copy, weight in pairs if copy.grad is not None]
        for copy, _ in stepped:
            copy.grad = None
        if stepped:
            copies, weights = zip(*stepped, strict=True)
            torch._foreach_copy_(weights, copies)

    def state_dict(self) -> dict:
        return {"inner": self.inner.state_dict(), "weights": [copy.detach() for copy in self._weights]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict) -> None:
        """Load what `state_dict` gave; the weights are those of its copies, rounded.

        A state of the other optimizer alone, as one without float32 weights has saved it, is loaded, too: the copies
        are then what the weights are.
        """
        saved = state_dict.get("weights", [])
        self.inner.load_state_dict(without_copies(state_dict))
        for copy, values in zip(self._weights, saved, strict=bool(saved)):
            copy.copy_(values)
            self._weights[copy].copy_(copy)
        self.param_groups = self.inner.param_groups

    def __getattribute__(self, name: str):
        if name == "state":  # what the other one keeps of each parameter
            return object.__getattribute__(self, "inner").state
        return super().__getattribute__(name)
