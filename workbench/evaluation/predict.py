"""Answers to the rows of datasets, as one batch on our own engine, in this process.

Rows are written as they end (`results.ROWS`), so that whatever ends the process, those are not asked again.
"""

import errno
import itertools
import json
import math
import os
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from workbench import loading_libraries
from workbench.config.options import EngineConfig
from workbench.data.registry import DatasetInfo, select
from workbench.data.token_cache import content_key
from workbench.engine.backend import Backend, ContextOverflow, Job, Sampling, Token
from workbench.errors import UserError
from workbench.evaluation.questions import Question, count, questions
from workbench.evaluation.results import LOCK, OWN, ROWS, TOTALS, Asked, Prediction
from workbench.evaluation.scores import scores_of, totals
from workbench.messages.message import Message
from workbench.models.locate import locate_adapter
from workbench.storage.files import write_atomically
from workbench.storage.locks import try_lock
from workbench.storage.workspace import Workspace, dataset_folder

# rows that are with the engine at one time; it decides how many share a pass. Where requests take turns, each that is
# open has a cache of its own
WAITING, WAITING_IN_TURNS = 256, 1
TELL_SECONDS = 1.0  # between two looks at how far it is
Progress = Callable[[str, float], None]


@dataclass
class Prepared:
    """What is to be answered, checked before a model is loaded."""

    infos: list[DatasetInfo]
    total: int
    answered: set[int]


def predict(
    asked: Asked,
    config: EngineConfig,
    workspace: Workspace,
    folder: Path,
    progress: Progress,
    log: Callable[[str], None],
) -> Message:
    """Answer what is asked, in `folder`; goes on where an unfinished one of the same question is there. Returns the
    sentence that says what came of it.

    Raises:
        UserError: the model, the adapter or a dataset cannot be used; another process writes there; a full disk.
    """
    if config.external:
        raise UserError("predict_other_engine")
    prediction = Prediction(folder)
    lock = _claim(folder)
    try:
        progress(Message("predict_counting"), 0.0)
        prepared = _prepare(asked, workspace, prediction)
        started = time.monotonic()
        if len(prepared.answered) < prepared.total:
            progress(Message("predict_loading"), 0.0)
            _answer(asked, config, workspace, prediction, prepared, progress, log)
        return _finish(asked, prediction, time.monotonic() - started)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError("predict_disk_full", done=sum(1 for _ in prediction.rows())) from None
    finally:
        os.close(lock)


def _claim(folder: Path) -> int:
    """The lock on a folder for predictions, made if it is not there. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    run = (folder / "run.yaml").is_file() or (folder / "state.json").is_file()
    if not run and any(path.name not in OWN and not path.name.endswith(".tmp") for path in folder.iterdir()):
        raise UserError("predict_folder_taken", folder=folder)
    lock = try_lock(folder / LOCK)
    if lock is None:
        raise UserError("predict_folder_busy", folder=folder)
    return lock


def _prepare(asked: Asked, workspace: Workspace, prediction: Prediction) -> Prepared:
    """What there is to do. An unfinished prediction of another question, or a finished one, is replaced."""
    infos = select(asked.dataset, dataset_folder(asked.dataset_dir, workspace), workspace)
    if not infos:
        raise UserError("predict_no_dataset")
    asked.content = [*map(content_key, infos), *_stamp(asked, workspace)]
    total = count(infos, asked.max_samples)
    answered: set[int] = set()
    before = prediction.asked()
    if before is not None and asdict(before) == json.loads(json.dumps(asdict(asked))) and not prediction.done:
        answered = _kept(prediction)
    else:
        for name in (TOTALS, ROWS):
            (prediction.path / name).unlink(missing_ok=True)
        prediction.write_asked(asked)
    return Prepared(infos, total, answered)


def _stamp(asked: Asked, workspace: Workspace) -> list:
    """What changes when an adapter is trained again."""
    if not asked.adapter:
        return []
    files = sorted(locate_adapter(asked.adapter, workspace).glob("adapter_*"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _kept(prediction: Prediction) -> set[int]:
    """The numbers of the rows that are answered. A last line that is not whole is taken away."""
    rows = {row["row"]: row for row in prediction.rows()}
    write_atomically(prediction.path / ROWS, "".join(_line(row) for row in rows.values()))
    return set(rows)


def _line(row: dict) -> str:
    text = json.dumps(row, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "replace").decode()  # a file's name may hold what is no text


def _answer(
    asked: Asked,
    config: EngineConfig,
    workspace: Workspace,
    prediction: Prediction,
    prepared: Prepared,
    progress: Progress,
    log: Callable[[str], None],
) -> None:
    """Load the model and answer the rows that are left."""
    with loading_libraries():
        import nltk.translate.bleu_score  # noqa: F401  (seconds that would count as the first answer's)
        import transformers

        from workbench.data.encode import Encoder
        from workbench.engine.batching.scheduler import backend_of
        from workbench.engine.transformers_backend import TransformersDecoder
        from workbench.models.load import load_tokenizer

    transformers.utils.logging.disable_progress_bar()

    # a tokenizer of its own: one is not for two threads at a time
    tokenizer = load_tokenizer(config, workspace, progress)
    encoder = Encoder(tokenizer, config.template, enable_thinking=config.enable_thinking)
    rows = questions(prepared.infos, encoder, asked.max_samples, prepared.answered)
    first = _first_askable(rows, prepared)
    decoder = TransformersDecoder(config, workspace, progress, log)
    if asked.adapter:
        decoder.add_adapter(asked.adapter, asked.adapter)
    backend = backend_of(decoder, log)
    tell = _Telling(prepared, progress, log)
    with open(prediction.path / ROWS, "a", encoding="utf-8") as file:
        try:
            for question, row in answers(backend, itertools.chain(first, rows), asked):
                file.write(_line(row))
                file.flush()
                if question.problem or row.get("problem"):
                    log(f"Row {question.row} ({question.place}) is left out: {row['problem']}")
                tell.one()
        except (UserError, OSError):
            raise
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0][:300]
            problem = f"{type(error).__name__}: {first_line}"
            raise UserError("predict_engine_failed", problem=problem, done=tell.done) from error
        finally:
            backend.close()


def _first_askable(rows: Iterator[Question], prepared: Prepared) -> list[Question]:
    """The rows up to the first that can be asked: a dataset of which none can be needs no model.

    Raises:
        UserError: none can be asked.
    """
    looked = []
    for question in rows:
        looked.append(question)
        if not question.problem:
            return looked
    if looked and not prepared.answered:
        worst = looked[0]
        raise UserError("predict_none_askable", count=len(looked), place=worst.place, reason=worst.problem)
    return looked


class _Telling:
    """How far it is: into the state at most once a second, into the log with every twentieth part."""

    def __init__(self, prepared: Prepared, progress: Progress, log: Callable[[str], None]):
        self.total, self.done, self._before = prepared.total, len(prepared.answered), len(prepared.answered)
        self._progress, self._log = progress, log
        self._start = self._told = time.monotonic()
        self._logged = -1

    def one(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self._told < TELL_SECONDS and self.done < self.total:
            return
        self._told = now
        rate = (self.done - self._before) / max(now - self._start, 1e-6)
        left = timedelta(seconds=round((self.total - self.done) / rate))
        going = Message("predict_going", done=self.done, total=self.total, rate=60 * rate, left=str(left))
        self._progress(going, self.done / max(1, self.total))
        if (part := 20 * self.done // max(1, self.total)) != self._logged:
            self._logged = part
            self._log(going)


class _Tagged:
    """A job's events, with its number, in a queue of all jobs."""

    def __init__(self, number: int, inbox: queue.SimpleQueue):
        self._number, self._inbox = number, inbox

    def put(self, event) -> None:
        self._inbox.put((self._number, event))


@dataclass
class _Open:
    question: Question
    job: Job
    text: str = ""
    finish: str = ""
    logprobs: list[float] | None = None
    problem: str = ""


def answers(backend: Backend, rows: Iterator[Question], asked: Asked) -> Iterator[tuple[Question, dict]]:
    """Each question with its row of results, as they end. All requests that are still open are cancelled when the
    generator is closed.

    Raises:
        Exception: what the engine failed with; a UserError of one request is that row's problem.
    """
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    going: dict[int, _Open] = {}
    measured = backend.capabilities.logprobs
    most = WAITING if backend.capabilities.batching else WAITING_IN_TURNS
    more = True
    try:
        while more or going:
            while more and len(going) < most:
                question = next(rows, None)
                if question is None:
                    more = False
                    break
                if not question.problem and len(question.ids) >= backend.context:
                    question.problem = ContextOverflow(backend.context, len(question.ids), "prompt").message
                if question.problem:
                    yield question, _result(_Open(question, None, problem=question.problem))  # type: ignore[arg-type]
                    continue
                job = Job(asked.adapter or None, [], _sampling(asked, question.row, measured), prompt=question.ids)
                job.events = _Tagged(question.row, inbox)  # type: ignore[assignment]
                going[question.row] = _Open(question, backend.submit(job), logprobs=[] if measured else None)
            if not going:
                continue
            number, event = inbox.get()
            one = going.get(number)
            if one is None:  # the end of one that has failed
                continue
            if isinstance(event, UserError):
                one.problem = event.message
            elif isinstance(event, Exception):
                raise event
            elif isinstance(event, Token):
                one.text += event.text
                one.finish = event.finish or one.finish
                if one.logprobs is not None:
                    one.logprobs += [info.logprob for info in event.infos]
            if event is None or one.problem:
                del going[number]
                yield one.question, _result(one)
    finally:
        for one in going.values():
            one.job.cancel()


def _sampling(asked: Asked, row: int, measured: bool) -> Sampling:
    return Sampling(
        max_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed + row,  # of its own, so that a row is answered alike whatever is answered beside it
        logprobs=0 if measured else None,
    )


def _result(one: _Open) -> dict:
    """A row of the file."""
    question = one.question
    row = {"prompt": question.prompt, "predict": one.text, "label": question.label, "row": question.row}
    row["place"] = question.place
    if one.problem:
        return row | {"problem": str(one.problem)}
    row |= {"finish": one.finish, "tokens": one.job.completion_tokens}
    if one.logprobs and math.isfinite(mean := fmean(one.logprobs)):
        row["logprob"] = round(mean, 5)
    return row | (scores_of(one.text, question.label) if question.label.strip() else {})


def _finish(asked: Asked, prediction: Prediction, seconds: float) -> Message:
    """Put the rows into their order, write the totals, and say what came of it."""
    rows = sorted(prediction.rows(), key=lambda row: row["row"])
    write_atomically(prediction.path / ROWS, "".join(_line(row) for row in rows))
    found: dict = totals(rows)
    found["predict_runtime"] = round(seconds, 4)
    found["predict_samples_per_second"] = round(found["predict_samples"] / seconds, 3) if seconds > 0 else 0.0
    write_atomically(prediction.path / TOTALS, json.dumps(found, indent=4))
    return said(found, prediction.path / ROWS)


def said(found: dict, file: Path) -> Message:
    """The totals in a sentence."""
    notes = []
    if found["predict_scored"]:
        names = ("bleu-4", "rouge-1", "rouge-2", "rouge-l", "exact_match")
        bleu, one, two, long, exact = (found[f"predict_{name}"] for name in names)
        notes.append(Message("predict_scores", bleu=bleu, one=one, two=two, long=long, exact=exact))
    else:
        notes.append(Message("predict_no_labels"))
    if found["predict_scored"] and (bare := found["predict_samples"] - found["predict_scored"]):
        notes.append(Message("predict_some_labels", count=bare))
    if found["predict_refused"]:
        notes.append(Message("predict_refused", count=found["predict_refused"]))
    if found["predict_cut"]:
        notes.append(Message("predict_cut", count=found["predict_cut"]))
    return Message("predict_done", count=found["predict_samples"], notes=notes, file=file)
