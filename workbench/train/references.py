"""Log-probabilities of answers under the reference model: computed once before the training, and kept by content.

The reference is the model without the adapter that will be trained, so no second model has to be in memory; or, with
`ref_model`, one that is loaded for this alone and freed before the model is loaded.
"""

import functools
import gc
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import xxhash

from workbench.config.options import RunConfig
from workbench.data.training_set import unit_lengths
from workbench.messages.message import Message
from workbench.models.attention import use_bounds
from workbench.models.demo import Progress
from workbench.models.locate import locate_adapter, locate_adapters, locate_model
from workbench.storage.workspace import Workspace
from workbench.train import ranks
from workbench.train.fast.loss import sum_loss_in_forward
from workbench.train.fast.rows import RowBatch, exact_shapes

BUDGET = {"cuda": 8192, "cpu": 1024}  # tokens of a forward pass
_KEPT = 20  # files


class References:
    """The reference of a run: which model that is, and its log-probabilities of rows.

    Args:
        dtype: what the model computes in.
        progress, log: take a phase with its share, and a sentence.
    """

    def __init__(self, config: RunConfig, workspace: Workspace, dtype: torch.dtype, progress: Progress, log):
        self._config, self._workspace, self._dtype = config, workspace, dtype
        self._progress, self._log = progress, log

    @property
    def other(self) -> bool:
        """Whether the reference is another model than the one that is trained."""
        return bool(self._config.ref_model or self._config.ref_model_adapters)

    @property
    def stays(self) -> bool:
        """Whether it is a model of its own in memory while the run trains (ASFT): it cannot be scored once, and whole
        weights cannot be switched off."""
        return self._config.keeps_reference

    def from_other(self, *datasets) -> list:
        """Rows with `references` of a model that is loaded here and freed again; each may be None, or a dict of rows.
        Raises UserError."""
        model = functools.cache(self.model)  # loaded where something is not known
        made = self._scored(datasets, lambda rows: log_probabilities(rows, model(), self._dtype, self._progress))
        model.cache_clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return made

    def model(self):
        """The reference, loaded as a model of its own. Raises UserError."""
        from peft import PeftModel

        from workbench.models.load import load_model

        config = self._config
        update = {
            "model_name_or_path": config.ref_model or config.model_name_or_path,
            "quantization_bit": config.ref_model_quantization_bit if config.ref_model else config.quantization_bit,
        }
        other = config.model_copy(update=update)
        # a model that only the first process loads is not divided
        if config.weights_on == "shared" or (config.weights_on == "host" and other.quantization_bit == 8):
            other = other.model_copy(update={"weights_on": "card"})
        model = load_model(
            other,
            self._workspace,
            dtype=self._dtype,
            split=config.device_map == "auto",
            progress=self._progress,
            log=self._log,
        )
        if config.ref_model_adapters:
            model = PeftModel.from_pretrained(model, locate_adapter(config.ref_model_adapters, self._workspace))
        return model

    def from_own(self, *datasets, model) -> list:
        """As `from_other`, of the model that is about to be trained."""
        config = self._config
        # a new adapter changes nothing yet; one that is continued is what the training starts from, not the reference
        continued = bool(config.adapter_name_or_path) and not config.create_new_adapter
        off = continued and hasattr(model, "disable_adapter")

        def compute(rows) -> np.ndarray:
            with model.disable_adapter() if off else nullcontext():
                return log_probabilities(rows, model, self._dtype, self._progress)

        return self._scored(datasets, compute, ranks.agree)

    def _scored(self, datasets, compute: Callable, agree: Callable[[bool], bool] = bool) -> list:
        """`datasets` with what is kept for them, or else with what `compute` gives, which is kept then.

        Args:
            agree: whether any process lacks it, of whether this one does.
        """

        def scored(rows):
            file = self._file(rows)
            values = self._known(file, rows)
            if agree(values is None):  # all of them compute, or none: they may share the model's weights
                values = compute(rows)
                if ranks.rank() == 0:
                    self._keep(file, values)
            return rows.add_column("references", values.reshape(len(rows), -1).tolist())

        return [_each(rows, scored) for rows in datasets]

    def _keep(self, file: Path, values: np.ndarray) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        with open(partial, "wb") as opened:
            np.save(opened, values)
        partial.replace(file)
        kept = sorted(file.parent.glob("*.npy"), key=_age)
        for old in kept[_KEPT:]:
            old.unlink(missing_ok=True)
        self._log(f"The reference model's log-probabilities of {len(values):,} answers are computed.")

    def _known(self, file: Path, rows) -> np.ndarray | None:
        try:
            values = np.load(file, allow_pickle=False)
        except (OSError, ValueError):
            return None
        if len(values) != sum(map(len, rows["seq_lengths"])):
            return None
        self._log("The reference model's log-probabilities are known from an earlier run.")
        return values

    def _file(self, rows) -> Path:
        """Where the values for these rows and this reference are kept."""
        c, digest = self._config, xxhash.xxh3_128()
        for batch in rows.with_format("arrow").iter(1000):
            for name in ("input_ids", "labels", "seq_lengths"):
                digest.update(np.ascontiguousarray(batch[name].combine_chunks().values.to_numpy(zero_copy_only=False)))
        own = [c.model_name_or_path, c.quantization_bit, c.adapter_name_or_path, c.create_new_adapter]
        other = [c.ref_model or c.model_name_or_path, c.ref_model_quantization_bit, c.ref_model_adapters]
        parts = [self.other, other if self.other else own, c.quantization_type, c.double_quantization, str(self._dtype)]
        parts += [c.rope_scaling, c.rope_factor, c.model_revision]
        named = [Path(locate_model(str((other if self.other else own)[0]), self._workspace))]
        named += locate_adapters(c.ref_model_adapters if self.other else c.adapter_name_or_path, self._workspace)
        for folder in named:
            parts += [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.glob("*")) if f.is_file()]
        digest.update(repr(parts).encode())
        return self._workspace.cache / "references" / f"{digest.hexdigest()}.npy"


def _age(file: Path) -> float:
    """Of a file that another run may take away meanwhile."""
    try:
        return -file.stat().st_mtime
    except OSError:
        return 0.0


def _each(rows, change: Callable):
    """`change(rows)`; of a dict of rows for each of them, of None nothing."""
    if isinstance(rows, dict):
        return {name: change(one) for name, one in rows.items()}
    return None if rows is None else change(rows)


def log_probabilities(rows, model, dtype: torch.dtype, progress: Progress) -> np.ndarray:
    """Summed log-probability of the trained tokens of each conversation, float32, in the order of `rows`.

    Conversations are laid end to end where the model can attend between bounds, else they go one by one.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    sum_loss_in_forward(causal)
    joined = not use_bounds(causal)  # what cannot be goes one by one
    lengths = list(rows["seq_lengths"])
    device = next(model.parameters()).device
    shapes = exact_shapes(unit_lengths(lengths, 1), BUDGET[device.type] if joined else 1)
    parts = RowBatch(list(rows)).parts
    values, training = np.zeros(len(parts), np.float32), model.training
    half = dtype in (torch.float16, torch.bfloat16) and device.type == "cuda"
    batches = shapes.cut([len(part) for part in parts]) if joined else [(0, [at]) for at in range(len(parts))]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=half):
            for number, (_, places) in enumerate(batches):
                progress(Message("reference_logps"), number / len(batches))
                batch = {name: v.to(device) for name, v in shapes.joined([parts[at] for at in places], 0).items()}
                bounded = {"position_ids": batch["position_ids"], "bounds": batch["bounds"], "longest": shapes.longest}
                losses = model(
                    input_ids=batch["input_ids"], labels=batch["labels"], per_token=True, **(bounded if joined else {})
                ).loss
                sums = losses.new_zeros(len(places) + 1)
                sums = sums.index_add(0, batch["segments"][1:].to(losses.device), losses[0])
                values[places] = -sums[: len(places)].float().cpu().numpy()
    finally:
        model.train(training)
    progress(Message("reference_logps"), 1.0)
    return values
