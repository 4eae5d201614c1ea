"""A backend whose requests share forward passes; the thread is the scheduler's."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import psutil
import torch
from torch import Tensor

from workbench.engine.backend import Capabilities, Job
from workbench.engine.batching.adapters import MixedAdapters
from workbench.engine.batching.batch import Batch, Limits
from workbench.engine.batching.cache import PagedCache
from workbench.engine.batching.fit import Fit, find_fit
from workbench.engine.batching.pages import Pages
from workbench.engine.batching.passes import Passes, spans
from workbench.engine.batching.plan import Costs
from workbench.engine.batching.runner import Piece, Runner
from workbench.engine.scheduler import Call, Scheduler
from workbench.engine.transformers_backend import TransformersDecoder
from workbench.errors import UserError
from workbench.models.cost import chat
from workbench.models.cost.chat import PAGE
from workbench.models.half_linear import PackedLinear
from workbench.models.layers import decoder_layers

_LIMITS = {"cuda": Limits(64, 4096, 1024), "cpu": Limits(32, 512, 128)}
_FIRST_TOKENS, _FIRST_BYTES = 4096, 2**28  # of the cache on a GPU before it grows: the larger of the two
_ROOMY_BYTES = 2**30  # up to which it grows rather than forget texts that may come again
_MOVES = 3.0  # a token's keys and values are read, put in order, and read again


def backend_of(decoder: TransformersDecoder, log: Callable[[str], None]) -> Scheduler:
    """The backend for a decoder: batching where the model allows it, else turns, which is said in `log`."""
    decoder.select(None)
    fit = find_fit(decoder.base, decoder.rope)
    if fit.reason:
        log(f"Requests take turns instead of sharing forward passes: {fit.reason}.")
        return Scheduler(decoder, not_batched=fit.reason)
    scheduler = BatchingScheduler(decoder, fit)
    held, rows = scheduler.batch.capacity, scheduler.batch.limits.rows
    log(
        f"Up to {rows} answers share forward passes; their cache holds {held:,} tokens"
        f" ({fit.bytes_per_token * held / 2**30:.1f} GiB at most)."
    )
    if fit.recorded:
        log("Decoding steps are recorded (CUDA graphs); weights in 4 bits are read as they are.")
        scheduler.batch.passes.runner.recorded.report = log
    elif fit.not_recorded:
        log(f"Decoding steps are not recorded (CUDA graphs), which makes them slower: {fit.not_recorded}.")
    if scheduler.batch.passes.runner.step:
        log("Streams without an adapter get their tokens from the kernels for the CPU.")
    return scheduler


class BatchingScheduler(Scheduler):
    """A `Backend` on a decoder whose model fits. For tests: `tokens` limits what the cache holds, `first` what it holds
    before it grows, `roomy` up to where it grows rather than forget."""

    def __init__(
        self,
        decoder: TransformersDecoder,
        fit: Fit,
        tokens: int | None = None,
        first: int | None = None,
        roomy: int | None = None,
    ):
        device = decoder._device.type
        limits = _LIMITS.get(device, _LIMITS["cpu"])
        held = tokens or planned_tokens(decoder.base, fit.bytes_per_token, decoder.context, limits.rows)
        most = held // PAGE + 2
        if first is None:
            first = max(_FIRST_TOKENS, _FIRST_BYTES // fit.bytes_per_token) if device == "cuda" else held
            roomy = _ROOMY_BYTES // fit.bytes_per_token
        pages = Pages(min(most, first // PAGE + 2), PAGE)
        longest = pages.needed(min(decoder.context, held)) + 1 if fit.recorded else 0
        cache = PagedCache(pages.count, PAGE, fit.alike)
        runner = Runner(decoder.base, cache, decoder.rope, fit.form, fit.quick, fit.steps, longest)
        packed = sum(module.nbytes for module in decoder.base.modules() if isinstance(module, PackedLinear))
        weights = packed + sum(parameter.nbytes for parameter in decoder.base.parameters())
        self.not_recorded = fit.not_recorded
        self.mixed = MixedAdapters()
        passes = Passes(runner, self.mixed, Costs(weights, _MOVES * fit.bytes_per_token), decoder.select_inner)
        self.batch = Batch(decoder, passes, pages, limits, fit.width, most, min(most, (roomy or 0) // PAGE + 2))
        for name in decoder.adapters:
            self._try_adapter(decoder, name)
        if device == "cuda":
            self._warm_up(decoder, limits.piece_alone)
        super().__init__(decoder)

    def _warm_up(self, decoder: TransformersDecoder, tokens: int) -> None:
        """Read a made-up prompt and decode, so that kernels are compiled before somebody waits for them."""
        pages, runner = self.batch.pages, self.batch.passes.runner
        tokens = min(tokens, (pages.count - 3) * PAGE, decoder.context - 1)
        taken = pages.take(pages.needed(tokens + 1)) or []
        decoder.select(None)
        lengths = [tokens + 1] * tokens if decoder.rope.kind else None
        try:
            runner.run([Piece([0] * tokens, 0, taken, lengths)])
            runner.decode([Piece([0], tokens, taken, lengths and lengths[:1])], None)
        except torch.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()  # a training beside this may want what a long prompt takes
        pages.release(taken)

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.decoder.capabilities, batching=True)

    def add_adapter(self, name: str, path: str) -> None:
        self.call(lambda: (self.decoder.add_adapter(name, path), self._try_adapter(self.decoder, name)))

    def merge_adapters(self, name: str, weights: dict[str, float]) -> None:
        self.call(lambda: (self.decoder.merge_adapters(name, weights), self._try_adapter(self.decoder, name)))

    def remove_adapter(self, name: str) -> None:
        def remove() -> None:
            if any(request.job.adapter == name for request in [*self.batch.running, *self.batch.waiting]):
                raise UserError("adapter_in_use", name=name)
            if gone := self.decoder.remove_adapter(name):
                self.mixed.forget(gone)
                if recorded := self.batch.passes.runner.recorded:
                    recorded.forget(gone)

        self.call(remove)

    def metrics(self) -> dict[str, float]:
        pages, batch = self.batch.pages, self.batch
        return batch.metrics.read() | {
            "requests_running": len(batch.running),
            "requests_waiting": len(batch.waiting) + self._incoming.qsize(),
            "kv_tokens": (pages.count - 2) * pages.size,
            "kv_tokens_most": batch.capacity,
            "kv_tokens_used": pages.owned * pages.size,
            "kv_use": pages.owned / max(1, pages.count - 2),
        }

    def _try_adapter(self, decoder: TransformersDecoder, name: str) -> None:
        """Find out whether an adapter's rows can be mixed with others."""
        inner = decoder._inner[name]
        if self.mixed.known(inner):
            return
        cache, runner = PagedCache(4, 8), self.batch.passes.runner
        tokens = [(3 * i + 5) % decoder.base.config.get_text_config().vocab_size for i in range(6)]

        def run(names: Sequence[str | None], apart: bool) -> Tensor:
            trial = Runner(decoder.base, cache, decoder.rope, runner.form, runner.quick)
            lengths = [len(tokens)] * len(tokens) if decoder.rope.kind else None
            pieces = [Piece(tokens, 0, [2 + i], lengths) for i in range(len(names))]
            if apart:
                rows = []
                for one, piece in zip(names, pieces, strict=True):
                    decoder.select_inner(one)
                    rows.append(trial.run([piece], own=True))
                return torch.cat(rows)
            decoder.select_inner(None)
            self.mixed.spans = spans(list(names))
            try:
                return trial.run(pieces)
            finally:
                self.mixed.spans = []

        self.mixed.add(inner, decoder.model, run)

    def _run(self) -> None:
        while not self._closing.is_set():
            while not self.batch.busy or not self._incoming.empty():
                self._take(self._incoming.get())
                if self._closing.is_set():
                    return
            try:
                with torch.inference_mode():
                    self.batch.step()
            except Exception as error:  # a fault of ours: those it meets hear of it, later ones are served
                self.batch.fail_all(error)

    def _take(self, item: Job | Call) -> None:
        if isinstance(item, Call):
            item.run()
        elif item.cancelled.is_set():  # given up while it waited: its prompt is not read
            item.events.put(None)
        else:
            self.batch.add(item)


def planned_tokens(model, bytes_per_token: int, context: int, rows: int) -> int:
    """Tokens that the cache may hold, of the memory that is free now: on each GPU that has layers of the model, those
    layers' part of it."""
    places = decoder_layers(model) or [model]
    layers = Counter(next(place.parameters()).device for place in places)
    found = []
    for device, count in layers.items():
        gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if gpu else psutil.virtual_memory().available
        part = -(-bytes_per_token * count // layers.total())
        found.append(chat.planned_tokens(free, part, context, rows, gpu))
    return min(found)
