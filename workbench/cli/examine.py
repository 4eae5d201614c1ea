"""A closer look at answers on the command line: probe sets, consistency, contradiction, what an adapter changed,
corrections."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.answers import LoadedModel, ask_server
from workbench.cli.shared import WORKSPACE, JsonOption, LoadingOption, WorkspaceOption, tell
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.users import check_name
from workbench.storage.workspace import Workspace

ModelArgument = Annotated[str, typer.Argument(help="A model's name, folder or hub id; with --base-url its name there.")]
AdapterOption = Annotated[str, typer.Option("--adapter", help="A run id or a folder.")]
UrlOption = Annotated[str, typer.Option("--base-url", help="Ask a running OpenAI-compatible server.")]
KeyOption = Annotated[str, typer.Option("--api-key", envvar="WORKBENCH_API_KEY")]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=1)]
UserOption = Annotated[str, typer.Option("--user", help="Those of a user who logs in to the page.")]
TEMPERATURE = 1.0  # of the samples of a consistency check, as on the page

corrections_app = typer.Typer(no_args_is_help=True, help="What users corrected: list it, add to it.")


def add_commands(app: typer.Typer) -> None:
    """Put this module's commands into the command line."""
    for command in (probe, consistency, contradiction, difference):
        app.command()(command)
    app.add_typer(corrections_app, name="corrections")


def _asking(
    model: str, adapter: str, set_: list[str] | None, workspace: Workspace, base_url: str, api_key: str, tokens: int
):
    """`(function that asks, name of what is asked)`."""
    if base_url:
        return ask_server(base_url, api_key, tokens), adapter or model
    names = [adapter] if adapter else []
    return LoadedModel(model, names, set_ or [], workspace, tokens).ask, adapter or model


def probe(
    set_name: Annotated[str, typer.Argument(metavar="SET", help="A bundled set (abilities, facts) or a JSONL file.")],
    model: ModelArgument,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="A run id or a folder, compared with the base. Repeatable.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", help="More samples a probe; they find inconsistent answers.")
    ] = 0,
    limit: Annotated[int, typer.Option("--limit", help="Only the first probes.")] = 0,
    base_url: UrlOption = "",
    api_key: KeyOption = "",
    set_: LoadingOption = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Ask a probe set of a model and of adapters; what passes, fails or varies, and what changed. Kept with each
    run."""
    from workbench.uncertainty import probes

    space = Workspace(workspace).create()
    questions = probes.read_set(set_name, space)[: limit or None]
    names = [Path(model).name if not base_url else model, *(adapter or [])]
    if base_url:
        ask = ask_server(base_url, api_key, probes.MAX_TOKENS)
    else:
        ask = LoadedModel(model, adapter or [], set_ or [], space, probes.MAX_TOKENS).ask
    reports = []
    for name in names:
        report = probes.Report(Path(set_name).stem, name)
        for number, question in enumerate(questions, 1):
            report.results.append(probes.run_probe(ask, name, question, samples))
            if sys.stderr.isatty():
                print(f"\r{name}: {number}/{len(questions)}", end="", file=sys.stderr)
        reports.append(report)
        probes.keep(report, space)
    rows = probes.before_after(reports)
    if json_:
        counts = [{v: r.count(v) for v in ("pass", "fail", "inconsistent")} | {"model": r.model} for r in reports]
        print(json.dumps({"set": set_name, "counts": counts, "rows": rows}, ensure_ascii=False))
        return
    for row in rows:
        print(f"{' / '.join(row['verdicts']):24} {row['change']:7} {row['prompt']}")
    for report in reports:
        tell(
            Message(
                "verdicts",
                model=report.model,
                passed=report.count("pass"),
                failed=report.count("fail"),
                varied=report.count("inconsistent"),
            )
        )


def consistency(
    model: ModelArgument,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    adapter: AdapterOption = "",
    samples: Annotated[int, typer.Option("--samples", min=1, max=32, help="More answers to compare with.")] = 5,
    max_tokens: TokensOption = 256,
    base_url: UrlOption = "",
    api_key: KeyOption = "",
    set_: LoadingOption = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Ask once greedily and several times at random; mark the sentences that the samples do not support."""
    from workbench.uncertainty.consistency import check

    ask, name = _asking(model, adapter, set_, Workspace(workspace).create(), base_url, api_key, max_tokens)
    messages = [{"role": "user", "content": question}]
    (answer,) = ask(name, messages, 1, 0.0, 0)
    others = ask(name, messages, samples, TEMPERATURE, 0)
    checked = check(answer, question, others)
    if json_:
        sentences = [{"text": text, "support": score} for text, score in checked.sentences]
        shown = {
            "answer": answer,
            "samples": others,
            "sentences": sentences,
            "support": checked.total,
            "meanings": checked.meanings,
        }
        print(json.dumps(shown, ensure_ascii=False))
        return
    for text, score in checked.sentences:
        print(f"{'  –' if score is None else f'{score:4.0%}'}  {text.strip()}")
    tell(
        Message("samples_support", level=checked.level, share=checked.total, samples=samples, meanings=checked.meanings)
    )


def contradiction(
    model: ModelArgument,
    question: Annotated[
        str, typer.Argument(help="A yes-no question; it is reworded, negated too. With --wordings, unused.")
    ],
    adapter: AdapterOption = "",
    wordings: Annotated[
        Path | None, typer.Option("--wordings", help="A file with one wording a line, ! before opposites.")
    ] = None,
    max_tokens: TokensOption = 120,
    base_url: UrlOption = "",
    api_key: KeyOption = "",
    set_: LoadingOption = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Ask one question in several wordings; mark answers that contradict the others. Exit code 2 if there are some."""
    from workbench.storage import files
    from workbench.uncertainty.contradiction import compare, reword
    from workbench.uncertainty.contradiction import wordings as parse

    try:
        text = files.read_text(wordings, files.MAX_YAML) if wordings else "\n".join(reword(question))
    except OSError as error:
        raise UserError("file_unreadable_name", file=wordings, reason=error.strerror) from None
    asked = parse(text)
    ask, name = _asking(model, adapter, set_, Workspace(workspace).create(), base_url, api_key, max_tokens)
    answers = [ask(name, [{"role": "user", "content": wording.question}], 1, 0.0, 0)[0] for wording in asked]
    readings = compare(asked, answers)
    if json_:
        rows = [
            {
                "question": r.wording.question,
                "opposite": r.wording.opposite,
                "answer": r.answer,
                "stance": r.stance,
                "contradicts": r.contradicts,
            }
            for r in readings
        ]
        print(json.dumps(rows, ensure_ascii=False))
    else:
        for r in readings:
            mark = "contradicts" if r.contradicts else ""
            print(f"{r.stance or '?':4} {mark:12} {r.wording.question}\n     {' '.join(r.answer.split())}")
    raise typer.Exit(2 if any(r.contradicts for r in readings) else 0)


def difference(
    model: Annotated[str, typer.Argument(help="The base model.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    adapter: Annotated[str, typer.Option("--adapter", help="A run id or a folder.")],
    max_tokens: TokensOption = 256,
    set_: LoadingOption = None,
    json_: JsonOption = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """What the adapter changed: its greedy answer, each token with its probability under the adapter and under the base
    model."""
    from workbench.engine.backend import Score

    loaded = LoadedModel(model, [adapter], set_ or [], Workspace(workspace).create(), max_tokens)
    messages = [{"role": "user", "content": question}]
    answer, tuned = loaded.measured(adapter, messages)
    base = loaded.decoder.score(Score(None, messages, [info.id for info in tuned], 5))
    rows = [
        {"text": info.text, "adapter": math.exp(info.logprob), "base": math.exp(other.logprob)}
        for info, other in zip(tuned, base, strict=True)
    ]
    if json_:
        print(json.dumps({"answer": answer, "tokens": rows}, ensure_ascii=False))
        return
    tell(Message("probability_heading"))
    for row in rows:
        print(f"{row['adapter']:7.1%} {row['base']:6.1%}  {row['text']!r}")


@corrections_app.command("list")
def list_corrections(json_: JsonOption = False, user: UserOption = "", workspace: WorkspaceOption = WORKSPACE):
    """All corrections, oldest first."""
    from workbench.chat import corrections

    space = Workspace(workspace)
    for row in corrections.rows(space.of_user(check_name(user)) if user else space):
        if json_:
            print(json.dumps(row, ensure_ascii=False))
            continue
        messages = row.get("messages") or []
        print(" → ".join(" ".join(str(message.get("content", "")).split()) for message in messages[-2:]))


@corrections_app.command("add")
def add_correction(
    question: Annotated[str, typer.Argument(help="What was asked.")],
    right: Annotated[str, typer.Option("--right", help="The right answer.")],
    wrong: Annotated[str, typer.Option("--wrong", help="What the model answered.")],
    model: Annotated[str, typer.Option("--model", help="Which model answered.")] = "",
    workspace: WorkspaceOption = WORKSPACE,
):
    """Keep a right answer for the next run; train on it with `dataset: corrections`."""
    from workbench.chat import corrections

    messages = [{"role": "user", "content": question}]
    count = corrections.correct(Workspace(workspace).create(), messages, wrong, right, model)
    tell(Message("corrections_count", count=count, name=corrections.DATASET))
