"""A run's trainer on the CPU, in this process, and its losses; the same set up by hand with TRL alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from workbench.config.run_config import validated
from workbench.data.training_set import load_data
from workbench.models.load import load_model, load_tokenizer
from workbench.models.new_tokens import ready_for_tokens
from workbench.models.tuning import tuned
from workbench.runs.run import create_run
from workbench.train.references import References
from workbench.train.trainer import build_trainer

STEPS = 20
COMMON = {
    "per_device_train_batch_size": 4, "learning_rate": 2e-3, "max_steps": STEPS, "logging_steps": 1, "seed": 42,
    "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no",
}  # fmt: skip


def make_values(model: Path, folder: Path) -> dict:
    """Options of a short run on 40 small rows in `folder`."""
    rows = [
        {"prompt": f"Question {i}?", "completion": f"{chr(97 + i % 26)} is {i * i}" * (i % 3 + 1)} for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    return COMMON | {"model_name_or_path": str(model), "dataset": "rows", "dataset_dir": str(folder), "cutoff_len": 128,
                     "plot_loss": False, "disable_gradient_checkpointing": True}  # fmt: skip


def ready(values, workspace, **more):
    """`(trainer, model before the trainer, run)` as a run makes them, on the CPU."""
    config = validated(values | more)
    tokenizer = load_tokenizer(config, workspace, lambda *_: None)
    rows, held_out = load_data(config, workspace, tokenizer, lambda *_: None, log=lambda line: None)
    run = create_run(workspace, config)
    quiet = {"progress": lambda *_: None, "log": lambda line: None}
    base = load_model(config, workspace, dtype=torch.float32, split=False, **quiet)
    torch.manual_seed(7)
    config = ready_for_tokens(base, tokenizer, config, lambda line: None)
    model = tuned(base, config, workspace, run.path, lambda line: None)
    stop = SimpleNamespace(requested=False)
    references = References(config, workspace, torch.float32, **quiet) if config.use_asft_loss else None
    return build_trainer(run, config, model, tokenizer, rows, held_out, torch.float32, stop, references), rows, run


def losses(trainer) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])


def by_hand(values, rows, folder, adapt, optimizer=None, **arguments) -> torch.Tensor:
    """Losses of TRL's trainer on the same rows, with `adapt(base)` and `optimizer(model)`."""
    base = AutoModelForCausalLM.from_pretrained(values["model_name_or_path"], dtype=torch.float32)
    torch.manual_seed(7)
    model = adapt(base)
    arguments = COMMON | {"max_length": None, "logging_first_step": True, "gradient_checkpointing": False} | arguments
    plain = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}, **arguments
    )
    tokenizer = AutoTokenizer.from_pretrained(values["model_name_or_path"])
    given = {"optimizers": (optimizer(model), None)} if optimizer else {}
    trainer = SFTTrainer(model=model, args=plain, train_dataset=rows, processing_class=tokenizer, **given)
    trainer.train()
    return losses(trainer)
