"""Commands that load a model: serve it, talk to it, write it with its adapters merged."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench import loading_libraries
from workbench.cli.answers import LoadedModel
from workbench.cli.shared import WORKSPACE, LoadingOption, WorkspaceOption, tell
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models import gguf
from workbench.storage.workspace import Workspace


def add_commands(app: typer.Typer) -> None:
    """Put this module's commands into the command line."""
    for command in (serve, chat, export, upload):
        app.command()(command)


def serve(
    model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="A run id, or NAME=RUN_OR_FOLDER. Repeatable.")
    ] = None,
    set_: LoadingOption = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[
        str, typer.Option("--api-key", envvar="WORKBENCH_API_KEY", help="Clients must send this key.")
    ] = "",
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Allow other addresses than loopback without a key.")
    ] = False,
    cors: Annotated[
        list[str] | None, typer.Option("--cors", help="A web origin whose pages may call the API, or *. Repeatable.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
    exit_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Serve a model with its adapters over OpenAI's protocol, without the page."""
    from workbench.config.options import EngineConfig
    from workbench.config.run_config import parse_overrides, validated
    from workbench.engine.main import serve as run_engine
    from workbench.runs.job import failures_told
    from workbench.runs.state import StateDirectory

    if host not in ("127.0.0.1", "localhost", "::1") and not api_key and not no_auth:
        raise UserError("serve_key", host=host)
    state = StateDirectory(state_dir) if state_dir else None
    with failures_told(state):
        config = validated({"model_name_or_path": model} | parse_overrides(set_ or []), EngineConfig)
        pairs = (item.split("=", 1) if "=" in item else (item, item) for item in adapter or [])
        run_engine(
            config,
            Workspace(workspace).create(),
            host=host,
            port=port,
            api_key=api_key,
            adapters=dict(pairs),
            cors=cors,
            state=state,
            exit_with_stdin=exit_with_stdin,
        )


def export(
    model: Annotated[str, typer.Argument(help="The base model.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new model in the workspace.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="A run id or folder, or RUN=WEIGHT. Repeatable: they are added up."),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="safetensors, bnb-4bit, gguf-f16, gguf-q8_0 (these four also without adapters), lora, gguf-lora.",
        ),
    ] = "safetensors",
    set_: LoadingOption = None,
    push_to_hub: Annotated[
        str, typer.Option("--push-to-hub", metavar="NAME", help="Upload it, too: NAME or OWNER/NAME on the hub.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    state_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Write a model into the workspace: adapters merged into their base, 4-bit, GGUF, or an adapter alone."""
    from workbench.config.options import EngineConfig
    from workbench.config.run_config import parse_overrides, validated
    from workbench.models.export import FORMATS
    from workbench.runs.job import told
    from workbench.runs.state import StateDirectory
    from workbench.train.metrics_log import progress_writer

    directory = Workspace(workspace).create()
    state = StateDirectory(state_dir) if state_dir else None
    result: list[str] = []
    with told(state, lambda: result[-1]):
        if format_ not in FORMATS:
            raise UserError("export_format", format=format_, names=list(FORMATS[1:]))
        weights = _weights(adapter or [])
        config = validated({"model_name_or_path": model} | parse_overrides(set_ or []), EngineConfig)
        progress = progress_writer(state) if state else (lambda phase, share: None)
        from workbench.models.export.upload import check_upload, upload

        place = check_upload(push_to_hub) if push_to_hub else ""
        target = _write(config, weights, name, format_, directory, progress, result)
        tell(result[-1])
        if place:
            url = upload(target, place, private, progress)
            result.append(Message("uploaded", name=target.name, url=url))
            tell(result[-1])


def _weights(adapters: list[str]) -> dict[str, float]:
    """Adapters and their weights of `RUN` or `RUN=WEIGHT`. Raises UserError: a weight that is no number."""
    weights = {}
    for item in adapters:
        one, equals, weight = item.rpartition("=")
        try:
            weights[one if equals else item] = float(weight) if equals else 1.0
        except ValueError:
            raise UserError("weight_wrong", item=item) from None
        if not math.isfinite(weights[one if equals else item]):
            raise UserError("weight_wrong", item=item)
    return weights


def _write(config, weights: dict[str, float], name: str, format_: str, workspace: Workspace, progress, result) -> Path:
    """Write an export; its folder. What is told of it is put into `result`."""
    with loading_libraries():
        import transformers.modeling_utils  # noqa: F401

        from workbench.data.encode import set_template
        from workbench.models.export.source import with_run_settings

    config = with_run_settings(config, weights, workspace)
    log = lambda line: print(line, file=sys.stderr)  # noqa: E731
    given = (workspace, progress, log, set_template)
    if format_ in gguf.FORMATS:
        from workbench.models.gguf.export import export_gguf

        file = export_gguf(config, weights, name, format_, *given)
        result.append(Message("gguf_exported", file=file))
        return file.parent
    if format_ == "safetensors":
        from workbench.models.export.merged import export as write
    elif format_ == "lora":
        from workbench.models.export.lora import export_lora as write
    else:
        from workbench.models.export.four_bit import export_4bit as write
    target = write(config, weights, name, *given)
    merged = "model_exported" if weights else "model_copied"
    code = {"safetensors": merged, "lora": "lora_exported"}.get(format_, "bnb_exported")
    result.append(Message(code, name=target.name, folder=target.parent))
    return target


def upload(
    name: Annotated[str, typer.Argument(help="An export of the workspace.")],
    to: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    state_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Upload an export to Hugging Face or a mirror of it, with the token of `hf auth login` or HF_TOKEN."""
    from workbench.models.export import upload as hub_upload
    from workbench.models.export.listing import find_export
    from workbench.runs.job import told
    from workbench.runs.state import StateDirectory
    from workbench.train.metrics_log import progress_writer

    state = StateDirectory(state_dir) if state_dir else None
    result: list[str] = []
    with told(state, lambda: result[0]):
        one = find_export(name, Workspace(workspace))
        progress = progress_writer(state) if state else (lambda phase, share: None)
        url = hub_upload.upload(one.path, hub_upload.check_upload(to), private, progress)
        result.append(Message("uploaded", name=name, url=url))
        tell(result[0])


def chat(
    model: Annotated[str, typer.Argument(help="A model's name, folder or hub id.")],
    adapter: Annotated[str | None, typer.Option("--adapter", help="A run id or a folder.")] = None,
    set_: LoadingOption = None,
    system: Annotated[str, typer.Option("--system", help="System prompt.")] = "",
    temperature: float = 0.7,
    max_tokens: int = 512,
    seed: int | None = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Talk to a model in the terminal: one line, one answer. An empty line or Ctrl-D ends."""
    from workbench.engine.backend import Job, Sampling

    loaded = LoadedModel(model, [adapter] if adapter else [], set_ or [], Workspace(workspace).create(), max_tokens)
    loaded.decoder.select(adapter)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    messages = [{"role": "system", "content": system}] if system else []
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        messages.append({"role": "user", "content": line})
        answer = ""
        for token in loaded.decoder.open(Job(adapter, messages, sampling)):
            answer += token.text
            print(token.text, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer})
