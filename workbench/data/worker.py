"""The process that looks at data for the page, which stays light: `python -m workbench.data.worker WORKSPACE [--allow
FOLDER --read-only --torch …]`.

One request per line on stdin, `{"op": …, "args": {…}}`; answers are lines on stdout: any number of `{"progress":
[words, share]}`, then `{"result": …}` or `{"error": sentence}`, each with the codes of its messages. It ends with its
stdin, and within limits on memory and time whatever it looks at. It does without torch, unless a tokenizer with code of
its own or a look at the trainer's own batches needs it.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.config.run_config import validated
from workbench.data import editing
from workbench.errors import UserError
from workbench.messages.answers import messages_in
from workbench.messages.message import Message
from workbench.runs import job
from workbench.storage.workspace import Workspace, dataset_folder

PATIENT_SECONDS = 600.0  # that a download may take
LISTED = 500  # problems that the page shows; the file has all


class Worker:
    """What can be asked; every public method is an operation, its keywords are the request's `args`."""

    def __init__(self, workspace: Workspace, say, *, confined: bool = True):
        """`say` takes what is told on the way; `confined`: paths must lie where the page may read."""
        self.workspace, self.say, self.confined = workspace.seen(confined=confined), say, confined
        self._told = 0.0
        self._places: dict = {}
        self._tokenizers: dict = {}

    # --- looking

    def preview(self, dataset: str, config: dict, start: int = 0, count: int = 5, tokens: bool = True) -> dict:
        """Rows from number `start` (from 0 on): `{"rows": [...], "layout", "quick", "problem"}`; `quick`: `count` takes
        a second at most; `problem`: why there are no tokens."""
        from workbench.data.dataset import with_layout
        from workbench.data.preview import row_view
        from workbench.models.vocabulary import Vocabulary

        places = self._rows_of(dataset, config)
        info = with_layout(places.info)
        encoder, vocabulary, problem = None, None, ""
        if tokens:
            try:
                encoder = self._encoder(config)
                vocabulary = Vocabulary(encoder.tokenizer)
            except UserError as error:
                encoder, problem = None, error.message
        rows = [row_view(number, raw, info, encoder, vocabulary) for number, raw in places.page(start, count)]
        return {"rows": rows, "layout": info.formatting, "quick": places.quick, "problem": problem}

    def count(self, dataset: str, config: dict) -> int:
        """Number of rows of a dataset."""
        return self._rows_of(dataset, config).count()

    def row(self, dataset: str, config: dict, number: int) -> str:
        """A row (from 1 on) as it stands in its file."""
        from workbench.data.preview import LARGE, source

        rows = self._rows_of(dataset, config).page(number - 1, 1) if number > 0 else []
        if not rows:
            raise UserError("row_missing", name=dataset, row=number)
        text = source(rows[0][1])
        if len(text) > LARGE:
            raise UserError("row_too_large_to_edit", row=number, size=len(text) / 2**20)
        return text

    def check(self, dataset: str, config: dict, report: str = "") -> dict:
        """Every bad row. The first ones are in the answer, all in the file `report` (JSON Lines)."""
        from workbench.data.dataset import unused_columns
        from workbench.data.preview import readable
        from workbench.data.registry import select
        from workbench.data.validate import Report, problems_of

        info = self._one(dataset, config)
        config = alone(config, dataset)
        options = self._options({"model_name_or_path": "-"} | config)  # rows can be checked without a model, too
        try:
            encoder, why = self._encoder(config), ""
        except UserError as error:
            encoder, why = None, error.message
        held_out = select(
            options.eval_dataset or "", dataset_folder(options.dataset_dir, self.workspace), self.workspace
        )
        held_out = [other for other in held_out if other.name != info.name]
        listed: list = []
        counts = Report()
        size = info.path.stat().st_size if info.path and info.path.is_file() else 0
        with _report(Path(report) if report else None) as file:
            for problem in problems_of(
                info, counts, encoder=encoder, held_out=held_out, workers=options.preprocessing_num_workers
            ):
                if problem is None:
                    share = min(1.0, counts.offset / size) if size and counts.offset > 0 else 0.0
                    self.progress(Message("checking_rows", name=info.name, rows=counts.rows), share)
                    continue
                problem = replace(problem, place=readable(problem.place), reason=readable(problem.reason))
                if len(listed) < LISTED:
                    listed.append([problem.row, problem.place, problem.kind, problem.reason])
                file.write(json.dumps(problem.as_json(), ensure_ascii=False) + "\n")
        unused = [readable(name)[:100] for name in unused_columns(info)]
        return {**vars(counts), "problems": listed, "untokenized": why, "unused": unused}

    def preflight(self, config: dict) -> None:
        """What can be found wrong with a run before it starts; see `preflight`."""
        from workbench.data.preflight import preflight

        preflight(self._options(config), self.workspace)

    def stats(self, config: dict, dataset: str = "") -> dict:
        """`Statistics` of all the datasets of a run, or of one of them. The tokens that are made for it are those that
        the run will use."""
        from workbench.data.preview import readable
        from workbench.data.statistics import statistics
        from workbench.data.token_cache import prepare

        config = alone(config, dataset) if dataset else config
        options, encoder = self._options(config), self._encoder(config)
        parts = []
        for info in self._select(options.dataset or "", config):
            limit = options.max_samples if info.num_samples is None else None
            parts.append(
                (
                    info,
                    prepare(
                        info,
                        encoder,
                        self.workspace,
                        self.progress,
                        limit=limit,
                        workers=options.preprocessing_num_workers,
                    ),
                )
            )
        first = next((p for _, part in parts for p in part.summary.broken_rows), None)
        why = readable(Message("at_place", place=first.place, problem=first.reason)) if first else ""
        return asdict(statistics(parts, options, self.workspace)) | {"dataset": options.dataset, "first_broken": why}

    def batches(self, config: dict, start: int = 0, count: int = 3) -> dict:
        """The run's own training rows, mixed and packed, as its collator gives them to the model."""
        from workbench.data.batches import sequences
        from workbench.models.vocabulary import Vocabulary

        options = self._options(config)
        tokenizer = self._load_tokenizer(options)
        return sequences(options, self.workspace, tokenizer, Vocabulary(tokenizer), self.progress, start, count)

    # --- changing

    def add(self, path: str, file_name: str, config: dict) -> list:
        """Take a file in: `[name, layout]`."""
        sent = Path(path)
        if self.confined and not (
            sent.resolve().is_relative_to(self.workspace.incoming) and sent.is_file() and not sent.is_symlink()
        ):
            raise UserError("not_an_upload", name=sent.name)
        return list(editing.add_file(self.workspace, sent, file_name, beside=self._folder(config)))

    def copy(self, dataset: str, config: dict, encoding: str = "") -> list:
        """Copy a dataset into the workspace: `[name, rows that could not be read]`. `encoding`: of its text, where its
        entry does not say so."""
        info = self._one(dataset, config)
        info = replace(info, encoding=encoding or info.encoding)
        return list(editing.copy(info, self.workspace, self.progress, beside=self._folder(config)))

    def split(self, dataset: str, config: dict, share: float) -> dict:
        """As `store.split_off`."""
        info = self._one(dataset, config)
        seed = int(config.get("seed") or 42)
        return editing.split_off(info, share, self.workspace, self.progress, seed, beside=self._folder(config))

    def passages(self, dataset: str, config: dict, most: int, first: int, count: int) -> list:
        """Passages of a document, as `pairs.passages_of`."""
        from workbench.data.pairs import passages_of

        return passages_of(self._one(dataset, config), most, first, count)

    def keep_pair(self, dataset: str, config: dict, question: str, answer: str) -> list:
        """Put a pair into the dataset of those about a document: `[name, rows]`."""
        from workbench.data.pairs import keep

        return list(keep(self.workspace, dataset, question, answer, beside=self._folder(config)))

    def change(self, dataset: str, config: dict, row: int, before: str, after: str | None) -> int:
        """Edit or delete a row: how many are left."""
        info = self._one(dataset, config)
        return editing.change_rows(self.workspace, dataset, {row: (before, after)}, info.path)

    def layout(
        self, dataset: str, config: dict, formatting: str, ranking: bool, columns: dict, tags: dict, encoding: str = ""
    ) -> str:
        """Say how rows are laid out: the layout that is used."""
        info = self._one(dataset, config)
        return editing.set_layout(self.workspace, dataset, formatting, ranking, columns, tags, info.path, encoding)

    # --- details

    def progress(self, words: str, share: float) -> None:
        """Tell how far it is, a few times a second."""
        if time.monotonic() - self._told > 0.2:
            self._told = time.monotonic()
            self.say({"progress": [words, share]})

    def _options(self, config: dict) -> RunConfig:
        options = validated(config, RunConfig)
        if self.confined:
            self.workspace.confine(options)
        return options

    def _folder(self, config: dict) -> Path:
        """The dataset folder in use."""
        return dataset_folder(self._options(_place(config)).dataset_dir, self.workspace)

    def _select(self, names: str, config: dict) -> list:
        """Datasets by name. Of the options only `dataset_dir` matters, so that others may still be wrong."""
        from workbench.data.registry import select

        options = self._options(_place(config) | {"dataset": names})
        datasets = select(names, dataset_folder(options.dataset_dir, self.workspace), self.workspace)
        for info in datasets:
            if self.confined and info.path is not None and "/" in info.name:  # named by its path
                self.workspace.inside(info.path, what="dataset")
        return datasets

    def _one(self, dataset: str, config: dict):
        datasets = self._select(dataset, config)
        if len(datasets) != 1:
            raise UserError("one_dataset", names=dataset, count=len(datasets))
        return datasets[0]

    def _rows_of(self, dataset: str, config: dict):
        from workbench.data.row_index import Places

        info = self._one(dataset, config)
        known = self._places.get(info.name)
        if known is None or known.info != info or not known.fresh():
            if len(self._places) >= 8:
                self._places.pop(next(iter(self._places)))
            with contextlib.nullcontext() if info.path else self._patient(Message("downloading", name=info.name)):
                known = self._places[info.name] = Places(info)
        return known

    def _encoder(self, config: dict):
        from workbench.data.training_set import encoder_of
        from workbench.models.new_tokens import described_tokens

        options = self._options(alone(config, config.get("dataset") or "-"))
        # an encoder gives its tokenizer the template, so those of different templates cannot share one
        cache_key = (
            options.model_name_or_path,
            options.model_revision,
            options.trust_remote_code,
            options.template,
            options.enable_thinking,
            options.add_tokens,
            options.add_special_tokens,
            tuple(described_tokens(options)),
        )
        if cache_key not in self._tokenizers:
            self._tokenizers.clear()
            self._tokenizers[cache_key] = self._load_tokenizer(options)
        return encoder_of(options, self._tokenizers[cache_key])

    def _load_tokenizer(self, options: RunConfig):
        from workbench.models.load import load_tokenizer
        from workbench.models.locate import is_demo, locate_model

        if (
            is_demo(options.model_name_or_path or "")
            and not Path(locate_model(options.model_name_or_path or "", self.workspace)).is_dir()
        ):
            command = job.command("workbench.models.demo", self.workspace.root)
            with self._patient(Message("converting_demo")):
                done = subprocess.run(command, capture_output=True, text=True, env=job.environment())
            if done.returncode:
                raise UserError("demo_failed", problem=(done.stderr.strip().splitlines() or ["–"])[-1][:300])
        if Path(locate_model(options.model_name_or_path or "", self.workspace)).is_dir():
            return load_tokenizer(options, self.workspace, self.progress)
        with self._patient(Message("downloading_tokenizer")):
            return load_tokenizer(options, self.workspace, self.progress)

    @contextlib.contextmanager
    def _patient(self, words: str):
        """Something that depends on a network or is our own, and may take minutes: it is told again and again that it
        goes on."""
        over = threading.Event()

        def tell() -> None:
            for _ in range(int(PATIENT_SECONDS / 5)):
                self.say({"progress": [words, 0.0]})
                if over.wait(5):
                    return

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def alone(config: dict, dataset: str) -> dict:
    """The options for one dataset on its own: those that mix several are left out."""
    return {k: v for k, v in config.items() if k not in ("mix_strategy", "interleave_probs")} | {"dataset": dataset}


def _place(config: dict) -> dict:
    """Of the options only what says where datasets are."""
    return {"model_name_or_path": "-", "dataset": "-"} | {k: config[k] for k in ("dataset_dir",) if config.get(k)}


@contextlib.contextmanager
def _report(target: Path | None):
    """A file to write to that becomes `target` at the end; what was there before is deleted at once. None: nothing is
    kept."""
    if target is None:
        with open(os.devnull, "w", encoding="utf-8") as file:
            yield file
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=".report-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _limit_memory(limit: int) -> None:
    """Let allocations beyond `limit` bytes fail. RLIMIT_DATA counts what a process may write to, not the libraries that
    it maps (torch for CUDA maps gigabytes), so it can be far tighter than RLIMIT_AS."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    """Serve requests until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace")
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--remote-code", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument(
        "--memory", type=int, default=0, help="bytes of data that this process, and each that it starts, may hold"
    )
    parser.add_argument("--seconds", type=int, default=0, help="that may pass without an answer or progress")
    parser.add_argument("--idle", type=float, default=900.0, help="seconds without a request after which it ends")
    given = parser.parse_args()
    _limit_memory(given.memory)
    if not given.torch:
        from workbench.data.chat_template import without_torch

        without_torch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that half-written files are deleted
    # what libraries print must not get between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    one_at_a_time = threading.Lock()

    def say(answer: dict) -> None:
        line = json.dumps(answer | messages_in(answer), ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"
        with one_at_a_time:
            signal.alarm(given.seconds)  # it goes on: the time begins anew
            answers.write(line)
            answers.flush()

    workspace = Workspace(given.workspace, given.allow, given.read_only, remote_code=given.remote_code, confined=True)
    worker = Worker(workspace.create(), say)
    while True:
        # idle memory is better used elsewhere; the page starts another process when it needs one
        idle = threading.Timer(given.idle, os._exit, [0])
        idle.daemon = True
        idle.start()
        signal.alarm(0)
        line = sys.stdin.readline()
        idle.cancel()
        if not line:
            return
        request = json.loads(line)
        # the default action of SIGALRM ends the process, whatever it is doing, also when the page is gone
        signal.alarm(given.seconds)
        try:
            say({"result": getattr(worker, request["op"])(**request["args"])})
        except UserError as error:
            say({"error": error.message, "encoding": getattr(error, "encoding", "")})
        except OSError as error:
            say({"error": Message("file_io", file=error.filename or Message("a_file"), reason=error.strerror or error)})
        except MemoryError:
            most = given.memory / 2**30
            say({"error": Message("memory_short_limit", most=most) if most else Message("memory_short")})
        except Exception as error:  # the page must be told; the whole is on stderr
            import traceback

            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0][:300]
            say({"error": Message("unexpected", kind=type(error).__name__, problem=first)})


if __name__ == "__main__":
    main()
