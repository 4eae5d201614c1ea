"""The trainer's watch on the loss and the disk, and what errors become."""

import errno
from types import SimpleNamespace

import pytest
import torch

from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.runs.run import create_run
from workbench.train import callbacks
from workbench.train.callbacks import LossWatch, check_space
from workbench.train.main import diagnosis

CONFIG = {"model_name_or_path": "a/b", "dataset": "d"}


def feed(losses):
    watching = LossWatch(1e-3)
    for step, loss in enumerate(losses, 1):
        control = SimpleNamespace(should_save=True)
        watching.on_log(
            SimpleNamespace(logging_steps=1), SimpleNamespace(global_step=step), control, logs={"loss": loss}
        )
        assert control.should_save == (loss == loss)  # no checkpoint of weights that may be broken
    watching.on_train_end(None, None, None)


def test_a_loss_that_is_no_number_or_diverges_ends_the_run():
    nan = float("nan")
    feed([2.0, nan, 2.0, nan, 2.0])  # once is a skipped step of a fp16 scaler
    with pytest.raises(UserError, match=r"not a number since step 3. Lower learning_rate \(now 0.001\)"):
        feed([2.0, 2.0, nan, float("inf")])
    with pytest.raises(UserError, match="not a number at the end"):
        feed([2.0, nan])
    with pytest.raises(UserError, match=r"The loss diverges: 7.60 at step 14, after 2.00"):
        feed([2.0] * 10 + [9.0] * 5)
    feed([4.0, 3.0, 2.0, 1.0, 0.5] * 4)
    feed([0.01] * 20 + [0.9] * 20)  # a small loss that grows is not a divergence


def test_room_on_the_disk(workspace, monkeypatch):
    run, model = create_run(workspace, validated(CONFIG)), torch.nn.Linear(1024, 1024)
    one = (1024 * 1024 + 1024) * 12 + (8 << 20)
    config = validated(CONFIG | {"save_steps": 10})

    def free(amount):
        monkeypatch.setattr(callbacks.shutil, "disk_usage", lambda path: SimpleNamespace(free=amount))

    free(100 * one)
    check_space(run, config, model, 100)
    assert run.state().warning == ""
    free(5 * one)
    check_space(run, validated(CONFIG | {"save_steps": 10, "save_total_limit": 2}), model, 100)
    assert run.state().warning == ""
    check_space(run, config, model, 100)
    assert "save_total_limit" in run.state().warning
    free(one)
    with pytest.raises(UserError, match="too little for this run"):
        check_space(run, config, model, 100)


def test_errors_become_sentences(tmp_path):
    cases = [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "The disk is full"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
            "2.00 GiB more were needed at once. Lower cutoff_len",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
            "Out of memory. Lower",
        ),
        (FileNotFoundError(2, "No such file or directory", "/data/rows.jsonl"), "The file /data/rows.jsonl is missing"),
        (KeyError("x"), "The traceback is in the log"),
    ]
    for error, words in cases:
        assert words in diagnosis(error, tmp_path)
