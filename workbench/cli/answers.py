"""Where the commands that question a model get their answers from: a model loaded in this process, or a server."""

import sys

from workbench import loading_libraries
from workbench.storage.workspace import Workspace


class LoadedModel:
    """A model with adapters in this process. Raises UserError where one cannot be loaded."""

    def __init__(self, model: str, adapters: list[str], overrides: list[str], workspace: Workspace, max_tokens: int):
        from workbench.config.options import EngineConfig
        from workbench.config.run_config import parse_overrides, validated
        from workbench.models.locate import locate_model

        config = validated({"model_name_or_path": model} | parse_overrides(overrides), EngineConfig)
        locate_model(model, workspace)
        with loading_libraries():
            from workbench.engine.transformers_backend import TransformersDecoder

        self.max_tokens, self.adapters = max_tokens, adapters
        self.decoder = TransformersDecoder(
            config, workspace, lambda phase, share: None, lambda line: print(line, file=sys.stderr)
        )
        for name in adapters:
            self.decoder.add_adapter(name, name)

    def ask(self, name: str, messages: list[dict], n: int, temperature: float, seed: int) -> list[str]:
        """`n` answers of an adapter, or of the base model for any other name."""
        answers = [""] * n
        for token in self._tokens(name, messages, n, temperature, seed):
            answers[token.index] += token.text
        return answers

    def measured(self, name: str, messages: list[dict]) -> tuple[str, list]:
        """A greedy answer and the `TokenInfo` of each of its tokens."""
        text, infos = "", []
        for token in self._tokens(name, messages, 1, 0.0, 0, logprobs=5):
            text += token.text
            infos += token.infos
        return text, infos

    def _tokens(
        self, name: str, messages: list[dict], n: int, temperature: float, seed: int, logprobs: int | None = None
    ):
        from workbench.engine.backend import Job, Sampling

        adapter = name if name in self.adapters else None
        self.decoder.select(adapter)
        sampling = Sampling(self.max_tokens, temperature, seed=seed, n=n, logprobs=logprobs)
        return self.decoder.open(Job(adapter, messages, sampling))


def ask_server(base_url: str, api_key: str, max_tokens: int):
    """A function as `LoadedModel.ask` that asks a running OpenAI-compatible server."""
    import asyncio

    from workbench.engine.client import Endpoint, complete

    endpoint = Endpoint(base_url.rstrip("/"), api_key, own=False)

    def ask(name: str, messages: list[dict], n: int, temperature: float, seed: int) -> list[str]:
        return asyncio.run(
            complete(endpoint, name, messages, n=n, temperature=temperature, seed=seed, max_tokens=max_tokens)
        )

    return ask
