"""Commands that load a model: serve it, talk to it, write it with its adapters merged."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.answers import LoadedModel
from workbench.cli.shared import WORKSPACE, LoadingOption, WorkspaceOption, tell
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.gguf import FORMATS
from workbench.storage.workspace import Workspace


def add_commands(app: typer.Typer) -> None:
    """Put this module's commands into the command line."""
    for command in (serve, chat, export):
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
            help="safetensors, gguf-f16, gguf-q8_0 (also without an adapter), or gguf-lora (adapters alone).",
        ),
    ] = "safetensors",
    set_: LoadingOption = None,
    state_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Merge adapters into their base model and write it into the workspace, as a model of its own or as GGUF."""
    from workbench.config.options import EngineConfig
    from workbench.config.run_config import parse_overrides, validated
    from workbench.runs.job import told
    from workbench.runs.state import StateDirectory
    from workbench.train.metrics_log import progress_writer

    directory = Workspace(workspace).create()
    state = StateDirectory(state_dir) if state_dir else None
    result: list[str] = []
    with told(state, lambda: result[0]):
        if format_ not in ("safetensors", *FORMATS):
            raise UserError("export_format", format=format_, names=list(FORMATS))
        weights = {}
        for item in adapter or []:
            one, equals, weight = item.rpartition("=")
            try:
                weights[one if equals else item] = float(weight) if equals else 1.0
            except ValueError:
                raise UserError("weight_wrong", item=item) from None
        config = validated({"model_name_or_path": model} | parse_overrides(set_ or []), EngineConfig)
        from workbench.data.encode import set_template

        progress = progress_writer(state) if state else (lambda phase, share: None)
        log = lambda line: print(line, file=sys.stderr)  # noqa: E731
        if format_ == "safetensors":
            from workbench.models.export import export as write

            target = write(config, weights, name, directory, progress, log, set_template)
            result.append(Message("model_exported", name=target.name, folder=target.parent))
        else:
            from workbench.models.gguf.export import export_gguf

            target = export_gguf(config, weights, name, format_, directory, progress, log, set_template)
            result.append(Message("gguf_exported", file=target))
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
