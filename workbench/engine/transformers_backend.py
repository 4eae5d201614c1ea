"""The Decoder on a transformers model with PEFT adapters."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from transformers import DynamicCache

from workbench.config.options import EngineConfig
from workbench.data.encode import set_template
from workbench.engine.backend import Capabilities, ContextOverflow, Job, Sampling, Score, Token, TokenInfo
from workbench.engine.detokenizer import AnswerRow, after_prompt
from workbench.engine.embeddings import mean_pooled
from workbench.engine.prompts import Prompts
from workbench.engine.sampling import Sampler, measure, sampling_defaults
from workbench.errors import UserError
from workbench.models import half_linear
from workbench.models.cpu.library import load as load_kernels
from workbench.models.cpu.linear import BlockedLinear, fits
from workbench.models.demo import Progress
from workbench.models.ends import end_tokens
from workbench.models.fused import use_fused
from workbench.models.host_weights import host_weights_of
from workbench.models.load import compute_dtype, load_model, load_tokenizer
from workbench.models.locate import check_folder, locate_adapter
from workbench.models.merging import add_up
from workbench.models.new_tokens import missing_tokens, take_tokens_of
from workbench.models.quantized import few_rows
from workbench.models.quantized.linears import use_packed_linears
from workbench.models.quantized.weights import triton_is_here
from workbench.models.rope_lengths import RopeLengths
from workbench.models.vocabulary import Vocabulary
from workbench.storage import files
from workbench.storage.workspace import Workspace
from workbench.train.placement import placed_chat

_SCORED_AT_ONCE = 256  # tokens of a given answer; bounds the logits that exist at one time
_PREFILL = {"cuda": 4096, "cpu": 512}  # tokens of a prompt that are read before others take their turn


class TransformersDecoder:
    """A `Decoder`: loads a base model, keeps any number of adapters beside it, decodes with a KV cache."""

    capabilities = Capabilities(
        adapters=True, score=True, logprobs=True, grammars=True, tokens=True, embeddings=True, continue_final=True
    )

    def __init__(
        self,
        config: EngineConfig,
        workspace: Workspace,
        progress: Progress,
        log: Callable[[str], None],
        adapters: Iterable[str] = (),
    ):
        """`adapters`: that will be loaded at once: the model gets the tokens that they were trained with."""
        if config.external:
            raise UserError("engine_only_serves")
        self.workspace = workspace
        config = placed_chat(config, workspace, log)
        dtype = compute_dtype() if config.infer_dtype == "auto" else getattr(torch, config.infer_dtype)
        self.tokenizer = load_tokenizer(config, workspace, progress)
        set_template(self.tokenizer, config.template, config.enable_thinking)
        split = "," in config.devices
        self.base = load_model(config, workspace, dtype=dtype, split=split, progress=progress, log=log)
        for path in adapters:
            take_tokens_of(self.tokenizer, self.base, locate_adapter(path, workspace), log)
        self._pack(config.cpu_weights, log)
        self._on_gpu = next(self.base.parameters()).device.type == "cuda"
        if self._on_gpu and triton_is_here():
            use_packed_linears(self.base)
            if host_weights_of(self.base) is None:  # fused layers are tried one by one, out of turn
                use_fused(self.base)
            if reason := few_rows.unusable():
                log(f"Weights in 4 bits are unpacked in every step, which makes answers slower: {reason}")
        self.model = self.base
        self.adapters: list[str] = []
        # inside PEFT an adapter is a module's attribute: a name such as `half` or one with a dot would not do
        self._inner: dict[str, str] = {}
        self._stamps: dict[str, tuple[str, int]] = {}  # inner name -> folder and when it was written
        self._numbers = itertools.count()
        self._selected: str | None = None
        self.context = getattr(self.base.config.get_text_config(), "max_position_embeddings", None) or 2**20
        rope = getattr(self.base.config.get_text_config(), "rope_parameters", None) or {}
        if rope.get("rope_type") in ("linear", "dynamic", "yarn", "llama3"):
            original = rope.get("original_max_position_embeddings") or self.context
            self.context = max(self.context, int(original * rope.get("factor", 1.0)))
        self._ends = self._end_tokens()
        self.prompts = Prompts(self.tokenizer, self._ends)
        self.defaults = sampling_defaults(self.base.generation_config)
        self._device = self.base.get_input_embeddings().weight.device
        self.rope = RopeLengths(self.base)
        self._chunk = _PREFILL.get(self._device.type, 512)
        self.vocabulary = Vocabulary(self.tokenizer)

    def _pack(self, wanted: str, log: Callable[[str], None]) -> None:
        """On the CPU: linear layers with weights in fewer bits, of which more are read in a second."""
        if host_weights_of(self.base) is not None:
            log("Weights that stream from host memory keep the form in which they were loaded.")
            return
        if wanted == "float32" or self.base.get_input_embeddings().weight.device.type != "cpu":
            return
        library = load_kernels(self.workspace, log)
        bits = 8 if wanted == "int8" and library else 16
        if wanted == "int8" and not library:
            log("Weights in 8 bits need these kernels: 16 bits are used instead.")

        def make(linear: torch.nn.Linear) -> BlockedLinear | None:
            return BlockedLinear(linear, library, bits) if library and fits(linear) else None

        if count := half_linear.pack(self.base, only_exact=wanted == "auto", make=make):
            log(f"{count} linear layers keep their weights in {bits} bits; the arithmetic is float32.")

    def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter under `name`; known names stay as they are.

        Raises:
            UserError: no adapter there, or one for another model.
        """
        from peft import PeftModel

        from workbench.models.reward import check_answers

        if name in self.adapters:
            return
        folder: Path = locate_adapter(path, self.workspace)
        check_folder(folder)
        check_answers(folder)
        stamp = str(folder.resolve()), max(file.stat().st_mtime_ns for file in folder.glob("adapter_*"))
        if same := next((inner for inner, known in self._stamps.items() if known == stamp), None):
            self._inner[name] = same  # under another name: the weights are there already
            self.adapters.append(name)
            return
        if missing := missing_tokens(self.tokenizer, folder):
            raise UserError("new_tokens_later", name=name, tokens=[str(token) for token in missing[:5]])
        inner = f"adapter_{next(self._numbers)}"
        if whole := _whole_modules(folder):
            half_linear.restore(self.base, whole)
        try:
            if self.adapters:
                self.model.load_adapter(str(folder), adapter_name=inner)
            else:
                self.model = PeftModel.from_pretrained(self.base, str(folder), adapter_name=inner)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UserError("adapter_refused", path=path, reason=" ".join(str(error).split())[:300]) from None
        self.model.eval()
        if self._on_gpu and triton_is_here():
            use_packed_linears(self.model)
        self._inner[name], self._stamps[inner] = inner, stamp
        self.adapters.append(name)
        self._selected = ""  # neither an adapter nor the base: forces the next select

    def remove_adapter(self, name: str) -> str | None:
        """Forget an adapter; returns its name inside PEFT if nothing else has its weights, which are then freed.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self.adapters:
            raise UserError("adapter_unknown", name=name, loaded=self.adapters or "–")
        self.adapters.remove(name)
        inner = self._inner.pop(name)
        if inner in self._inner.values():
            return None
        self._stamps.pop(inner, None)
        if self.adapters:
            self.model.delete_adapter(inner)
        else:
            self.model.unload()
            self.model = self.base
        self._selected = ""
        return inner

    def merge_adapters(self, name: str, weights: dict[str, float]) -> None:
        """A new adapter that adds up others that are loaded, each with its weight. Exact: the factors are put side by
        side (PEFT's `cat`), so the rank is the sum of the ranks.

        Raises:
            UserError: an unknown adapter, a name that is taken, or adapters that cannot be added up.
        """
        if name in self.adapters:
            raise UserError("adapter_name_taken", name=name)
        if unknown := [other for other in weights if other not in self.adapters]:
            raise UserError("adapters_not_loaded", names=unknown)
        inner = f"adapter_{next(self._numbers)}"
        try:
            add_up(self.model, [self._inner[other] for other in weights], list(weights.values()), inner)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError("adapters_unmergeable", reason=" ".join(str(error).split())[:300]) from None
        self.model.eval()
        if self._on_gpu and triton_is_here():
            use_packed_linears(self.model)
        self._inner[name] = inner
        self.adapters.append(name)
        self._selected = ""

    def select(self, adapter: str | None) -> None:
        self.select_inner(None if adapter is None else self._inner[adapter])

    def select_inner(self, inner: str | None) -> None:
        """As `select`, by the adapter's name inside PEFT."""
        if inner == self._selected or not self.adapters:
            return
        if inner is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(inner)
        self._selected = inner

    def open(self, job: Job) -> Iterator[Token]:
        sampling = job.sampling
        prompt = self._prompt(job)
        job.prompt_tokens = len(prompt)
        room = self.context - len(prompt)
        if room < 1:
            raise ContextOverflow(self.context, len(prompt), "messages" if job.prompt is None else "prompt")
        if not prompt:
            raise UserError("prompt_empty")
        limit = min(sampling.max_tokens, room)
        ids = torch.tensor([prompt], device=self._device)
        cache = DynamicCache(config=self.base.config.get_text_config())
        read = 0
        while len(prompt) - read > 2 * self._chunk:
            self._forward(ids[:, read : read + self._chunk], cache, keep=1, lengths=(len(prompt), len(prompt)))
            read += self._chunk
            yield Token("", pause=True)
        logits = self._forward(ids[:, read:], cache, keep=1, lengths=(len(prompt), len(prompt)))[:, -1]
        sampler = Sampler(sampling, ids, self.tokenizer, logits.shape[-1])
        plain = job.response_template is None
        rows = [AnswerRow(index, self.tokenizer, sampling.stop, plain, prompt) for index in range(sampling.n)]
        if sampling.n > 1:
            cache.batch_repeat_interleave(sampling.n)
            logits = logits.expand(sampling.n, -1)
        length, written = 0, ids.expand(sampling.n, -1)
        while True:
            figures = alternatives = None
            # entered anew at each token: other requests run between two of them
            with torch.inference_mode():
                step = sampler.choose(logits)
                if sampling.logprobs is not None:
                    figures, alternatives = measure(logits, step, sampling.logprobs)
            length += 1
            going = []
            for place, (row, token) in enumerate(zip(rows, step[:, 0].tolist(), strict=True)):
                job.completion_tokens += 1
                info = figures and self._info(token, figures[place], alternatives[place], sampling.logprobs)
                ended = token in self._ends or sampler.grammars[place].stopped
                sent = row.add(token, info, end=token in self._ends, ended=ended, full=length >= limit)
                if not sent.finish:
                    going.append(place)
                yield sent
            if not going:
                return
            if len(going) < len(rows):
                rows = [rows[place] for place in going]
                sampler.keep(going)
                kept = torch.tensor(going, device=self._device)
                step, written = step[kept], written[kept]
                with torch.inference_mode():
                    cache.batch_select_indices(kept)
            total = len(prompt) + length
            if self.rope.kind == "longrope":
                written = torch.cat([written, step], dim=1)
                if self.rope.reread(total - 1, total):
                    step, cache = written, DynamicCache(config=self.base.config.get_text_config())
            logits = self._forward(step, cache, keep=1, lengths=(len(prompt), total))[:, -1]

    def score(self, request: Score) -> list[TokenInfo]:
        """What the model thinks of each token of an answer that is given; one forward pass. Call it on the scheduler's
        thread.

        Raises:
            UserError: the conversation and the answer are longer than the context.
        """
        answer = request.answer
        prompt = self._prompt(
            Job(request.adapter, request.messages, Sampling(), request.prompt, template_values=request.template_values)
        )
        given = self.tokenizer(answer, add_special_tokens=False)["input_ids"] if isinstance(answer, str) else answer
        if any(not 0 <= token < len(self.tokenizer) for token in given):
            raise UserError("answer_ids")
        if len(prompt) + len(given) > self.context:
            raise ContextOverflow(self.context, len(prompt) + len(given))
        if not prompt or not given:
            return []
        self.select(request.adapter)
        cache = DynamicCache(config=self.base.config.get_text_config())
        ids = torch.tensor([prompt + given], device=self._device)
        lengths = len(prompt), ids.shape[1]
        logits = self._forward(ids[:, : len(prompt)], cache, keep=1, lengths=lengths)[0]
        stream, infos = after_prompt(self.tokenizer, prompt, skip_special=False), []
        for piece in ids[0, len(prompt) :].split(_SCORED_AT_ONCE):
            after = self._forward(piece[None], cache, keep=len(piece), lengths=lengths)[0]
            with torch.inference_mode():
                rows = torch.cat([logits[-1:], after[:-1]])
                figures, alternatives = measure(rows, piece[:, None], request.top)
            logits = after
            for token, numbers, others in zip(piece.tolist(), figures, alternatives, strict=True):
                info = self._info(token, numbers, others, request.top)
                info.text = stream.step(self.tokenizer._tokenizer, token) or ""
                infos.append(info)
        return infos

    def _forward(self, ids: torch.Tensor, cache: DynamicCache, keep: int, lengths: tuple[int, int]) -> torch.Tensor:
        """Logits [rows, keep, vocabulary] in float32 of the last tokens; the cache grows. `lengths`: of the prompt, and
        of the whole text as far as it is known."""
        given = None
        if self.rope.kind:
            start = cache.get_seq_length()
            given = torch.tensor(self.rope.lengths(start, start + ids.shape[1], *lengths)).expand(ids.shape)
        with torch.inference_mode(), self.rope.given(given):
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits.float()

    def _info(self, token: int, figures: list[float], others: list[int], top: int) -> TokenInfo:
        read = self.vocabulary.bytes
        best = [
            (other, read(other), logprob, other in self._ends)
            for other, logprob in zip(others[:top], figures[3:], strict=False)
        ]
        return TokenInfo(token, "", read(token), figures[0], int(figures[1]), figures[2], best)

    def _prompt(self, job: Job) -> list[int]:
        return self.prompts.ids(job)

    def tokenize(self, job: Job) -> list[int]:
        return self.prompts.ids(job)

    def detokenize(self, tokens: list[int]) -> str:
        return self.prompts.text(tokens)

    def embed(self, adapter: str | None, tokens: list[int]) -> list[float]:
        if len(tokens) > self.context:
            raise ContextOverflow(self.context, len(tokens), "input")
        self.select(adapter)
        return mean_pooled(self.base, torch.tensor([tokens], device=self._device))

    def _end_tokens(self) -> set[int]:
        return set(end_tokens(self.base, self.tokenizer))


def _whole_modules(folder: Path) -> list[str]:
    """Names of the layers that an adapter replaces, or whose weight itself it changes."""
    config = files.read_object(folder / "adapter_config.json")
    saved, parameters = config.get("modules_to_save") or [], config.get("target_parameters") or []
    return [*saved, *(name.removesuffix(".weight") for name in parameters if name.endswith(".weight"))]
