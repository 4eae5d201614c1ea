"""Weights of the decoder layers in host memory, streamed through the device while it computes.

Each layer's frozen matrices (packed or not) lie one after the other in one stretch of host memory, which is page-locked
where there is a GPU. On the device there are a few slots of the size of the largest layer; layer i always goes into
slot i mod n. So every parameter is a view of its slot for good: its address never changes, only what lies there, and
whatever reads the parameter needs to know nothing of all this.

A layer's weights are fetched when those before it in the pass begin, on a stream of their own, and the computation
waits for them. A slot is overwritten only after the computation that was asked for before has finished. The forward
pass goes up; the backward pass goes down and finds the last n layers still there. A layer that is computed again on its
way back has its weights once for both.

On a CPU the same happens without streams. Norms, biases, routers, embeddings and the head stay on the device, as do
adapters, which are added later.
"""

import functools
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.models.cost.placement import SLOTS
from workbench.models.layers import decoder_layers
from workbench.models.pinned import lock, unlock
from workbench.models.quantized.weights import is_packed

_ALIGNED = 512  # bytes; what kernels read wide begins at such an address
_TRIES = 3  # copies of a layer by which the link is measured


class Part:
    """One tensor of a layer: where it lies in the layer's bytes, and what is to view its slot."""

    def __init__(self, tensor: Tensor, start: int, put: Callable[[Tensor], None]):
        self.tensor, self.start, self.put = tensor, start, put
        self.shape, self.dtype, self.size = tensor.shape, tensor.dtype, tensor.numel() * tensor.element_size()

    def view(self, memory: Tensor) -> Tensor:
        return memory[self.start : self.start + self.size].view(self.dtype).view(self.shape)

    def take_into(self, memory: Tensor) -> None:
        """Copy the tensor to where it lies in `memory`, and let go of it."""
        self.view(memory).copy_(self.tensor)
        del self.tensor


def _copied(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)


class Copies:
    """Fills slots on a device without streams: done when it is asked for. `fill(slot's memory, what is kept of a
    layer)`."""

    def __init__(self, fill: Callable[[Tensor, Tensor], None] = _copied):
        self._fill = fill

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Fill a slot after all computation that was asked for so far."""
        self._fill(target, source)

    def wait(self, slot: int) -> None:
        """Let the computation that follows wait for the copy into this slot."""

    def finish(self) -> None:
        """Wait for all copies."""


class CopiesBeside(Copies):
    """Copies to a GPU, on a stream of their own.

    They wait for what the computing stream had been asked for when they were: so a slot is not overwritten while
    something reads it.
    """

    def __init__(self, device: torch.device, slots: int, fill: Callable[[Tensor, Tensor], None] = _copied):
        super().__init__(fill)
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._asked = [torch.cuda.Event() for _ in range(slots)]
        self._done = [torch.cuda.Event() for _ in range(slots)]

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:
        self._asked[slot].record(torch.cuda.current_stream(self._device))
        self._stream.wait_event(self._asked[slot])
        with torch.cuda.stream(self._stream):
            self._fill(target, source)
            self._done[slot].record(self._stream)

    def wait(self, slot: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._done[slot])

    def finish(self) -> None:
        self._stream.synchronize()


class HostWeights:
    """The streamed weights of one model.

    Attributes:
        layers: streamed layers. slots: of the device. bytes: of all layers in host memory. slot_bytes: of one slot.
        bandwidth: bytes a second from host to device, measured at the start.
        copied: layers that were copied so far.
    """

    shared = False  # among processes
    at_once = SLOTS

    def __init__(self, layers: list[nn.Module], device: torch.device, slots: int = 0, laid_out=None):
        parts = _parts_of(layers)
        sizes = [self._rounded(_end(own)) for own in parts]
        self.layers, self.slots, self.device = layers, min(slots or self.at_once, len(layers)), device
        self.bytes, self.slot_bytes = sum(sizes), max(sizes)
        self.copied, self.bandwidth = 0, 0.0
        self._sizes = sizes
        self._memory = self._slots_memory()
        self._holds: list[int | None] = [None] * self.slots
        on_gpu = device.type == "cuda"
        self.copies = CopiesBeside(device, self.slots, self._fill) if on_gpu else Copies(self._fill)
        self._stored: list[Tensor] = []  # of each layer what it is put together from
        self._hooks: list = []
        for number, (layer, own) in enumerate(zip(layers, parts, strict=True)):
            self._stored.append(self._kept(own, sizes[number]))
            for part in own:
                part.put(part.view(self._memory[number % self.slots]))
            layer.host_weights = self  # type: ignore[assignment]
            # the layer's own hook lies outside of its checkpoint or inside, its parts' always inside
            for module in (layer, *layer.children()):
                hook = module.register_forward_pre_hook(lambda module, args, number=number: self._forward(number))
                self._hooks.append(hook)
            hook = layer.register_forward_hook(lambda module, args, out, number=number: self._watch(number, out))
            self._hooks.append(hook)
            if laid_out is not None:
                laid_out(number + 1, len(layers))
        self.bandwidth = self._measured()
        for number in range(self.slots):
            self._fetch(number)

    # ---- where weights come from

    def _slots_memory(self) -> list[Tensor]:
        return [torch.empty(self.slot_bytes, dtype=torch.uint8, device=self.device) for _ in range(self.slots)]

    def _rounded(self, size: int) -> int:
        """Bytes that a layer of so many takes."""
        return _aligned(size)

    def _fill(self, target: Tensor, source: Tensor) -> None:
        """A slot from what is kept of a layer."""
        _copied(target, source)

    def _kept(self, parts: list[Part], size: int) -> Tensor:
        """One stretch of host memory with these tensors, which are let go of one by one."""
        memory = torch.zeros(size, dtype=torch.uint8)
        if self.device.type == "cuda":
            weakref.finalize(self, unlock, [lock(memory)]).atexit = False
        for part in parts:
            part.take_into(memory)
        return memory

    def from_outside(self) -> list[Callable[[Callable], Any]]:
        """Of each layer what calls it with its weights there, from now on instead of hooks within it: code that is
        compiled as a whole does not see these. The layer's whole way back is one node then."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        return [functools.partial(self._around, number) for number in range(len(self.layers))]

    def _around(self, number: int, call: Callable[[], Any]) -> Any:
        self._forward(number)
        out = call()
        self._watch(number, out)
        return out

    # ---- when weights are needed

    def _forward(self, number: int) -> None:
        # a layer that is computed again calls this within the backward pass
        self.need(number, down=torch._C._current_graph_task_id() != -1)

    def _watch(self, number: int, out) -> None:
        """Have the layer's weights back when the gradient of its output is there: its way back begins then.

        The engine runs the newest of all nodes that can run, so that by then all of the layers above are done.
        """
        first = out[0] if isinstance(out, tuple | list) else out
        if isinstance(first, Tensor) and first.requires_grad and torch._C._current_graph_task_id() == -1:
            first.register_hook(lambda grad: self.need(number, down=True))

    def need(self, number: int, down: bool = False) -> None:
        """The computation that follows on the current stream finds layer `number` in its slot. What follows it in the
        pass (upwards, or `down`) is fetched ahead."""
        slot = number % self.slots
        if self._holds[slot] != number:
            self._fetch(number)
        self.copies.wait(slot)
        taken = {slot}
        for other in self._coming(number, down):
            if other % self.slots in taken:
                break
            taken.add(other % self.slots)
            if self._holds[other % self.slots] != other:
                self._fetch(other)

    def _coming(self, number: int, down: bool) -> Iterator[int]:
        count = len(self.layers)
        for step in range(1, self.slots):
            if down:
                if number - step >= 0:
                    yield number - step
            elif number + step < count:
                yield number + step
            elif not torch.is_grad_enabled():  # no way back: the next pass begins at the bottom
                yield (number + step) % count

    # ---- copying

    def _fetch(self, number: int) -> None:
        """Copy a layer into its slot."""
        slot, size = number % self.slots, self._sizes[number]
        self._holds[slot] = number
        self.copied += 1
        self.copies.start(slot, self._memory[slot][:size], self._stored[number])

    def _measured(self) -> float:
        """Bytes a second of copies of the largest layer; the first one is not counted."""
        largest = max(range(len(self._sizes)), key=self._sizes.__getitem__)
        self._fetch(largest)
        self.copies.finish()
        began = time.perf_counter()
        for _ in range(_TRIES):
            self._fetch(largest)
        self.copies.finish()
        self.copied = 0
        return _TRIES * self._sizes[largest] / max(1e-9, time.perf_counter() - began)


def bring(module: nn.Module) -> None:
    """Have the weights of an embedding or output head there, if they come and go, for whoever reads them without
    calling it."""
    if (bringing := getattr(module, "bring", None)) is not None:
        bringing()


def host_weights_of(model: nn.Module) -> HostWeights | None:
    """What streams the weights of `model`; None where they are on its device."""
    return next((layer.host_weights for layer in decoder_layers(model) if hasattr(layer, "host_weights")), None)


def stream_weights(
    model: nn.Module,
    device: torch.device,
    laid_out: Callable[[int, int], None] | None = None,
    slots: int = 0,
    kind: Callable[..., HostWeights] = HostWeights,
) -> HostWeights:
    """Let the decoder layers' weights of a frozen model on the CPU stay there; everything else goes to `device`.

    Args:
        laid_out: takes the number of layers that are in their place, and of all.
        slots: layers that are on the device at a time, at least 2; as many as `kind` has them if 0.
        kind: where the weights stay.

    Raises:
        UserError: the model has no layers that are known as such.
    """
    layers = decoder_layers(model)
    if not any(_parts_of(layers)):
        raise UserError("host_weights_no_layers", kind=type(model).__name__)
    made = kind(layers, device, slots and max(2, slots), laid_out)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or parameter.device == device:
                    continue
                if is_packed(parameter):
                    module._parameters[name] = parameter.to(device)
                else:
                    parameter.data = parameter.data.to(device)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
    if device.type == "cuda":
        model.hf_device_map = {"": device.index or 0}  # by which libraries know that it is in its place
    return made


def streamed_modules(model: nn.Module) -> set[str]:
    """Names of the modules whose weights are streamed."""
    return {
        f"{name}.{inner}".rstrip(".")
        for name, layer in model.named_modules()
        if hasattr(layer, "host_weights")
        for inner, module in layer.named_modules()
        if any(_streams(layer, module, p) for p in module._parameters.values() if p is not None)
    }


def check_not_streamed(model: nn.Module, targets: list[str]) -> None:
    """Raise UserError for modules to be trained as a whole (by their names or the ends of them) whose weights are
    streamed: what lies in a slot is no copy to begin with."""
    if not (streamed := streamed_modules(model)):
        return
    for name, _ in model.named_modules():
        for target in targets:
            if f".{name}".endswith(f".{target}") and any(f"{own}.".startswith(f"{name}.") for own in streamed):
                what = f"additional_target: {target}"
                if (weights := host_weights_of(model)) and weights.shared:
                    raise UserError("shared_with", what=what)
                raise UserError("host_with", what=what)


# ---- what is streamed, and how it lies


def _streams(layer: nn.Module, module: nn.Module, parameter: nn.Parameter) -> bool:
    """Matrices, but for routers, which are small and float32: packed weights, linear layers, fused experts."""
    if is_packed(parameter):
        return True
    matrix = parameter.dim() == 3 or (parameter.dim() == 2 and isinstance(module, nn.Linear))
    return matrix and not _routes(layer, module)


def _routes(layer: nn.Module, module: nn.Module) -> bool:
    """Whether `module` stands beside experts and chooses among them."""
    for parent in layer.modules():
        if hasattr(parent, "experts"):
            for name in ("gate", "router"):
                if getattr(parent, name, None) is module:
                    return True
    return False


def _parts_of(layers: list[nn.Module]) -> list[list[Part]]:
    """Of each layer, but for weights that several of them share: these stay on the device."""
    owners = Counter(parameter for layer in layers for parameter in set(layer.parameters()))
    return [_parts(layer, {parameter for parameter, count in owners.items() if count > 1}) for layer in layers]


def _parts(layer: nn.Module, shared: set[nn.Parameter]) -> list[Part]:
    """Of a layer that is not streamed yet, in the order of its modules."""
    parts: list[Part] = []

    def add(tensor: Tensor, put: Callable[[Tensor], None]) -> None:
        parts.append(Part(tensor.contiguous(), _aligned(_end(parts)), put))

    for module in layer.modules():
        for parameter in module._parameters.values():
            if parameter is None or parameter in shared or not _streams(layer, module, parameter):
                continue
            parameter.requires_grad_(False)
            add(parameter.data, lambda view, p=parameter: setattr(p, "data", view))
            state = getattr(parameter, "quant_state", None)
            for scales in (state, getattr(state, "state2", None)):
                if scales is not None:
                    add(scales.absmax, lambda view, s=scales: _set_scales(s, view))
    return parts


def _set_scales(state, view: Tensor) -> None:
    """The scales are a view of a slot; what else the state has is small and goes where they are."""
    state.absmax = view
    state.code = state.code.to(view.device)
    if isinstance(getattr(state, "offset", None), Tensor):
        state.offset = state.offset.to(view.device)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _end(parts: list[Part]) -> int:
    return parts[-1].start + parts[-1].size if parts else 0
