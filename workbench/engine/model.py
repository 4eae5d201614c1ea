"""The Decoder on a transformers model with PEFT adapters."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workbench.corpus.encode import set_template
from workbench.engine.decoding import Job, Sampling, Token
from workbench.errors import UserError
from workbench.models.demo import Progress
from workbench.models.load import compute_dtype, load_model, load_tokenizer
from workbench.models.locate import locate_adapter
from workbench.options import EngineConfig
from workbench.workspace import Workspace

_END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|user|>",
    "<|observation|>",
    "<|endoftext|>",
)


class TransformersDecoder:
    """Loads a base model, keeps any number of adapters beside it, decodes with a KV cache."""

    def __init__(self, config: EngineConfig, workspace: Workspace, progress: Progress, log: Callable[[str], None]):
        self.workspace = workspace
        dtype = compute_dtype() if config.infer_dtype == "auto" else getattr(torch, config.infer_dtype)
        self.tokenizer = load_tokenizer(config, workspace, progress)
        set_template(self.tokenizer, config.template)
        split = "," in config.devices
        self.base = load_model(config, workspace, dtype=dtype, split=split, progress=progress, log=log)
        self.model = self.base
        self.adapters: list[str] = []
        self._selected: str | None = None
        self.context = getattr(self.base.config.get_text_config(), "max_position_embeddings", None) or 2**20
        rope = getattr(self.base.config.get_text_config(), "rope_parameters", None) or {}
        if rope.get("rope_type") in ("linear", "dynamic", "yarn", "llama3"):
            original = rope.get("original_max_position_embeddings") or self.context
            self.context = max(self.context, int(original * rope.get("factor", 1.0)))
        self._ends = self._end_tokens()

    def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter under `name`; known names stay as they are.

        Raises:
            UserError: no adapter there, or one for another model.
        """
        from peft import PeftModel

        if name in self.adapters:
            return
        folder: Path = locate_adapter(path, self.workspace)
        try:
            if self.adapters:
                self.model.load_adapter(str(folder), adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.base, str(folder), adapter_name=name)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UserError(
                f"The adapter {path} does not fit this model: {' '.join(str(error).split())[:300]}"
            ) from None
        self.model.eval()
        self.adapters.append(name)
        self._selected = ""  # neither an adapter nor the base: forces the next select

    def select(self, adapter: str | None) -> None:
        if adapter == self._selected or not self.adapters:
            return
        if adapter is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(adapter)
        self._selected = adapter

    def open(self, job: Job) -> Iterator[Token]:
        prompt = self._prompt(job.messages)
        sampling = job.sampling
        job.prompt_tokens = len(prompt)
        room = self.context - len(prompt)
        if room < 1:
            raise UserError(
                f"The conversation has {len(prompt):,} tokens, but the context holds {self.context:,}. Shorten it, or start a new one."
            )
        limit = min(sampling.max_tokens, room)
        device = self.base.get_input_embeddings().weight.device
        generator = torch.Generator(device=device)
        if sampling.seed is not None:
            generator.manual_seed(sampling.seed % 2**63)
        else:
            generator.seed()
        processors = _processors(sampling)
        ids = torch.tensor([prompt], device=device)
        cache = DynamicCache(config=self.base.config.get_text_config())
        step, detokenizer, text = ids, DecodeStream(skip_special_tokens=True), StopText(sampling.stop)
        while True:
            # entered anew at each token: other requests run between two of them
            with torch.inference_mode():
                logits = (
                    self.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                    .logits[:, -1]
                    .float()
                )
                step = _choose(processors(ids, logits), sampling.temperature, generator)
                ids = torch.cat([ids, step], dim=-1)
            token = int(step)
            job.completion_tokens += 1
            if token in self._ends:
                yield Token(text.rest(), "stop")
                return
            piece, stopped = text.add(detokenizer.step(self.tokenizer._tokenizer, token) or "")
            if stopped:
                yield Token(piece, "stop")
                return
            if job.completion_tokens >= limit:
                yield Token(piece + text.rest(), "length")
                return
            yield Token(piece)

    def _prompt(self, messages: list[dict]) -> list[int]:
        try:
            rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # Jinja raises many kinds
            raise UserError(f"The chat template cannot render this conversation: {error}.") from None
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _end_tokens(self) -> set[int]:
        own = self.base.generation_config.eos_token_id
        ends = set(own if isinstance(own, list) else [own]) | {self.tokenizer.eos_token_id}
        template = self.tokenizer.chat_template or ""
        for text in _END_OF_TURN:
            if re.search(re.escape(text), template):
                token = self.tokenizer.convert_tokens_to_ids(text)
                if token is not None and token != self.tokenizer.unk_token_id:
                    ends.add(token)
        return ends - {None}


_GREEDY_BELOW = 0.01  # a lower temperature picks the best token anyway, and would overflow


def _processors(sampling: Sampling) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature >= _GREEDY_BELOW:
        if sampling.temperature != 1.0:
            chosen.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            chosen.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            chosen.append(TopPLogitsWarper(sampling.top_p))
    return chosen


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """The next token, [1, 1], from logits [1, vocabulary]."""
    if temperature < _GREEDY_BELOW:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)


class StopText:
    """Passes text on until one of the stop texts appears; holds back what could be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """`(text to send, whether a stop text was reached)`."""
        self._held += piece
        found = [i for stop in self.stops if (i := self._held.find(stop)) >= 0]
        if found:
            sent, self._held = self._held[: min(found)], ""
            return sent, True
        keep = max(
            (n for stop in self.stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )
        sent = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return sent, False

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        sent, self._held = self._held, ""
        return sent
