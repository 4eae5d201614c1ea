"""`workbench inspect`: what a model is, from its config alone; `workbench download`: a model from a hub."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, JsonOption, Language, WorkspaceOption, language, speak, tell
from workbench.storage.workspace import Workspace


def add_commands(app: typer.Typer) -> None:
    """Put this module's commands into the command line."""
    app.command()(inspect)
    app.command()(download)


def inspect(
    model: Annotated[str, typer.Argument(help="A model's name, folder or config.json, or a bundled config's name.")],
    every: Annotated[bool, typer.Option("--fields", help="Explain every field of the config, too.")] = False,
    lang: Annotated[Language | None, typer.Option("--lang", help="Print in English or Chinese.")] = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """What a model is, from its config.json alone: parameters, cache, arithmetic, what can be done with it here."""
    from workbench.models.anatomy.report import as_json, find, report

    if lang:
        speak(lang.value)
    found = find(model, Workspace(workspace))
    result = report(found)
    if json_:
        print(json.dumps(as_json(result, language()), ensure_ascii=False))
        return
    print(f"{found.name}  {found.path or ''}".rstrip())
    for text in (*result.problems, *result.notes):
        tell(text)
    if result.anatomy is not None:
        _figures(result, language())
    _here(result, language())
    if every:
        _fields(result, language())


def download(
    model: Annotated[str, typer.Argument(help="OWNER/MODEL of the hub.")],
    revision: Annotated[str, typer.Option("--revision", help="A branch, tag or commit.")] = "main",
    state_dir: Annotated[Path | None, typer.Option(hidden=True)] = None,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Fetch a model into the workspace; again: go on with what is there. Hugging Face, HF_ENDPOINT or ModelScope."""
    from workbench.messages.message import Message
    from workbench.models.anatomy.units import memory
    from workbench.models.download import download as fetch
    from workbench.runs.job import told
    from workbench.runs.run import folder_bytes
    from workbench.runs.state import StateDirectory
    from workbench.train.metrics_log import progress_writer

    directory = Workspace(workspace).create()
    state = StateDirectory(state_dir) if state_dir else None
    result: list[str] = []
    with told(state, lambda: result[0]):
        progress = progress_writer(state) if state else (lambda words, share: tell(words, file=sys.stderr))
        target = fetch(model, revision, directory, progress)
        result.append(Message("download_done", name=target.name, size=memory(folder_bytes(target))))
        tell(result[0])


def _figures(result, lang: str) -> None:
    from workbench.models.anatomy import cache
    from workbench.models.anatomy.units import memory, parameters
    from workbench.ui.catalogue import say
    from workbench.ui.tabs.model import view
    from workbench.ui.tabs.model.charts import kind_name

    anatomy = result.anatomy
    print(f"\n{say('model_parameters', lang)}: {view.counted_text(anatomy, lang)}")
    active = anatomy.by_component(active=True)
    for component, count in anatomy.by_component().items():
        share = f"{count / anatomy.total:.1%}"
        met = "" if active[component] == count else f"  {say('model_active', lang)}: {parameters(active[component])}"
        print(f"  {count:>20,}  {share:>6}  {say(f'component_{component}', lang)}{met}")
    print(f"\n{say('model_cache', lang)}:")
    for variant in cache.variants(anatomy.sizes):
        size = cache.cache_bytes(anatomy.sizes, 1, per_layer=variant.elements, windows=False)
        print(f"  {memory(size):>12}  {kind_name(variant, lang)}")
    if result.context:
        full = memory(cache.cache_bytes(anatomy.sizes, result.context))
        print(f"  {full:>12}  {say('model_cache_full', lang, context=f'{result.context:,}')}")
    print("\n".join([*view.cache_texts(result, lang), "", view.flops_text(result, lang)]))
    if result.rotary:
        print(f"\n{say('model_rope', lang)}:")
        for name, context, words in view.rope_rows(result, 4.0, lang):
            print(f"  {name}: {context:,}. {words}")


def _here(result, lang: str) -> None:
    from workbench.ui.catalogue import say
    from workbench.ui.tabs.model.view import here_rows

    print(f"\n{say('model_here', lang)}:")
    for name, words in here_rows(result, lang):
        first, *more = words.splitlines() or [""]
        print("\n".join([f"  {name}: {first}", *(f"    {line}" for line in more)]))


def _fields(result, lang: str) -> None:
    from workbench.ui.catalogue import say

    index, group = 1 if lang == "zh" else 0, ""
    for field in result.fields:
        if field.group != group:
            group = field.group
            print(f"\n{say(f'group_fields_{group}', lang)}")
        print(f"  {field.name}: {field.value}")
        if words := " ".join(filter(None, (field.meaning[index], field.effect[index]))):
            print(f"    {words}")
