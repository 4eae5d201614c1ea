"""The engine's API in this process, on a free port: faster to start than a process of its own."""

import contextlib
from collections.abc import Iterator

from tests.other_engine import serving
from workbench.engine.batching.scheduler import backend_of
from workbench.engine.scheduler import Scheduler
from workbench.engine.server import build_app


@contextlib.contextmanager
def served(decoder, name: str = "base", key: str = "") -> Iterator[tuple[str, Scheduler]]:
    """Base URL with `/v1`, and the scheduler, of the API over a decoder."""
    scheduler = backend_of(decoder, print)
    with listening(scheduler, name, key) as url:
        yield f"{url}/v1", scheduler


@contextlib.contextmanager
def listening(scheduler: Scheduler, name: str = "base", key: str = "") -> Iterator[str]:
    """The API over a backend on a free port: its address."""
    with serving(build_app(scheduler, name, key)) as url:
        yield url


def tiny_decoder(folder, workspace, *, template: str = "chatml", context: int = 4096):
    """A decoder on a tiny model with more room than its own 512 tokens: random weights know no positions."""
    from workbench.config.options import EngineConfig
    from workbench.config.run_config import validated
    from workbench.engine.transformers_backend import TransformersDecoder

    config = validated({"model_name_or_path": str(folder), "template": template, "devices": "cpu"}, EngineConfig)
    decoder = TransformersDecoder(config, workspace, lambda phase, share: None, lambda line: None)
    decoder.context = context
    return decoder
