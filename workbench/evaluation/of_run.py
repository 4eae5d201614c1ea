"""The predictions of a run with `do_predict`: `python -m workbench.evaluation.of_run RUN_DIRECTORY --workspace FOLDER`,
started by `train.supervise`. It talks only through files in the run directory, as the trainer does."""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import load_run_config, validated
from workbench.errors import UserError
from workbench.evaluation.results import Asked, Prediction
from workbench.evaluation.target import engine_values, loading
from workbench.messages.message import Message
from workbench.models.kernel_cache import use_kernel_cache
from workbench.runs.run import Run
from workbench.storage.workspace import Workspace
from workbench.train.main import diagnosis, die_with_parent
from workbench.train.metrics_log import log, progress_writer


class Stopped(BaseException):
    """SIGTERM has arrived."""


def asked_by(run: Run, config: RunConfig) -> tuple[Asked, EngineConfig]:
    """What a run's options ask for: the trained adapter, or the trained model, or, without a training, the model and
    the adapter that the options name. Raises UserError."""
    model, adapter = config.model_name_or_path or "", config.adapter_name_or_path or ""
    if config.do_train:
        whole = not (run.path / "adapter_config.json").is_file()
        model, adapter = (str(run.path), "") if whole else (model, run.id)
    values = engine_values(config.model_dump()) | {"model_name_or_path": model}
    if "," in (devices := run.stored_state().devices):
        values["devices"] = devices
    engine = validated(values, EngineConfig)
    asked = Asked(
        model,
        adapter,
        config.eval_dataset or config.dataset or "",
        config.dataset_dir,
        config.max_samples,
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.seed,
        loading(engine),
    )
    return asked, engine


def main(arguments: list[str]) -> int:
    """Predict, and say in the run's state what came of it. Returns 0 done or stopped, 2 bad input, 1 failure."""
    run, workspace = Run(Path(arguments[0])), Workspace(arguments[2])
    die_with_parent()

    def stop(signum, frame):
        (run.path / ".answered").touch()
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    try:
        said = _predict(run, workspace)
    except Stopped:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        done = sum(1 for _ in Prediction(run.path).rows())
        _end(run, state="stopped", reason=Message("predict_stopped", done=done))
    except UserError as error:
        print(f"Error: {error}", flush=True)
        _end(run, state="failed", reason=error.message)
        return 2
    except Exception as error:
        traceback.print_exc()
        _end(run, state="failed", reason=diagnosis(error, run.path))
        return 1
    else:
        log(said)
        _end(run, state="finished", reason=said)
    return 0


def _end(run: Run, **changes) -> None:
    run.update(phase="", heartbeat=time.time(), **changes)


def _predict(run: Run, workspace: Workspace) -> Message:
    from workbench.evaluation.predict import predict

    config = load_run_config(run.path / "run.yaml")
    asked, engine = asked_by(run, config)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    use_kernel_cache(workspace)
    run.update(state="running", reason="")
    if not run.stored_state().device:
        import torch

        run.update(device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    return predict(asked, engine, workspace, run.path, progress_writer(run, say=False), log)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # after a stop the engine's thread may be in the middle of a step, which Python's own end crashes on
