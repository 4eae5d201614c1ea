"""Every option of a run and of a loaded model, defined once.

Name, type, default, range, group, label and help (English and Chinese) stand in these modules (`model_options`,
`data_options`, `stage_options`, `train_options`, `tuning_options`, and the rest here) and nowhere else: the form,
the YAML file, `--set key=value`, the import of LLaMA-Factory commands and `docs/options.md` are made from it.
The names and, unless noted, the defaults are LLaMA-Factory's.
"""

import math
from typing import Literal

from workbench.config.model_options import EngineConfig, ModelOptions
from workbench.config.option import GROUPS, literal_choices, opt, options_that_affect, tags
from workbench.config.train_options import SCHEDULERS
from workbench.config.tuning_options import TuningOptions

__all__ = [
    "GROUPS",
    "SCHEDULERS",
    "EngineConfig",
    "ModelOptions",
    "RunConfig",
    "literal_choices",
    "options_that_affect",
    "tags",
]


class RunConfig(TuningOptions):
    """One fine-tuning run."""

    # precision and memory
    fp16: bool = opt(
        False, "memory", ("fp16", "fp16"), ("Half precision; for V100 and T4.", "半精度；适用于 V100 与 T4。")
    )
    bf16: bool = opt(
        False,
        "memory",
        ("bf16", "bf16"),
        ("bfloat16; neither ticked: chosen for the device.", "bfloat16；都不选则按设备决定。"),
    )
    pure_bf16: bool = opt(
        False,
        "memory",
        ("Whole weights in bf16 alone", "全部权重仅用 bf16"),
        (
            "Of full and freeze: no float32 copies of trained weights. Saves half of their memory; steps smaller than the rounding of bfloat16 are lost.",
            "用于 full 与 freeze：不为所训练的权重保留 float32 副本。可省去其一半显存，但小于 bfloat16 舍入误差的更新会丢失。",
        ),
    )
    deepspeed: str | None = opt(
        None,
        "memory",
        ("ZeRO (DeepSpeed)", "ZeRO（DeepSpeed）"),
        (
            "Of full tuning: a config of DeepSpeed, as JSON, whose zero_optimization spreads gradients and optimizer states (stage 1, 2) and weights (3) over the devices. Needs pip install deepspeed.",
            "用于全参数训练：DeepSpeed 的 JSON 配置，其中 zero_optimization 把梯度与优化器状态（stage 1、2）以及权重（3）切分到各设备。需要 pip install deepspeed。",
        ),
    )
    disable_gradient_checkpointing: bool = opt(
        False,
        "memory",
        ("No gradient checkpointing", "关闭梯度检查点"),
        ("Faster, but keeps all activations in memory.", "更快，但激活全部留在显存。"),
    )
    torch_compile: Literal["auto", "on", "off"] = opt(
        "auto",
        "memory",
        ("Compile layers", "编译各层"),
        (
            "Fuses each layer's operations on a GPU; costs about a minute at the start. auto: where that saves more.",
            "在 GPU 上融合每层的运算；开始时约需一分钟。auto：仅在总时间更短时使用。",
        ),
    )
    cuda_graphs: Literal["auto", "on", "off"] = opt(
        "auto",
        "memory",
        ("Recorded steps", "录制训练步"),
        (
            "Replays a training step on the GPU without Python in between, as a CUDA graph.",
            "以 CUDA graph 在 GPU 上重放训练步，省去 Python 开销。",
        ),
    )
    activation_memory: Literal["auto", "least"] = opt(
        "auto",
        "memory",
        ("Activations", "激活显存"),
        (
            "With compiled layers. auto: use the memory there is, to compute less twice. least: compute layers again and keep "
            "what they store in the host's memory.",
            "用于编译的层。auto：用足可用显存以减少重算。least：重算各层，并将其所存放到主机内存。",
        ),
    )
    max_gpu_memory: float | None = opt(
        None,
        "memory",
        ("GPU memory limit", "显存上限"),
        ("GiB that the run may take; empty: all that is free.", "本次运行可用的显存（GiB）；留空为全部可用。"),
        gt=0,
    )
    device_map: Literal["none", "auto"] = opt(
        "none",
        "memory",
        ("Split over GPUs", "多卡切分"),
        (
            "auto spreads the layers of one model over all given GPUs.",
            "auto 将模型各层分布到所给的全部 GPU。",
        ),
    )
    devices: str = opt(
        "auto",
        "memory",
        ("Devices", "设备"),
        (
            "auto (one), all, cpu, or GPU ids. Several train together, a process and the whole model on each:"
            " steps have as many times the batch. With device_map auto they share one model.",
            "auto（单卡）、all、cpu 或 GPU 编号。多个设备共同训练，每个设备一个进程与完整模型，每步批量按设备数倍增；"
            "device_map 为 auto 时多卡分担同一模型。",
        ),
        affects=(),
    )

    # evaluation
    val_size: float = opt(
        0.0,
        "eval",
        ("Validation share", "验证集占比"),
        ("Share below 1, or a number of rows.", "小于 1 为占比，否则为行数。"),
        basic=True,
        ge=0,
        affects=("data",),
    )
    eval_strategy: Literal["no", "steps", "epoch"] = opt(
        "no", "eval", ("Evaluate every", "评估时机"), ("no, steps or epoch.", "no、steps 或 epoch。")
    )
    eval_steps: float | None = opt(
        None,
        "eval",
        ("Evaluation steps", "评估步数"),
        (
            "Steps between evaluations; below 1: a share of all steps; empty: logging steps.",
            "评估间隔步数；小于 1 为占总步数的比例；留空同日志步数。",
        ),
        gt=0,
    )
    eval_on_each_dataset: bool = opt(
        False,
        "eval",
        ("Evaluate each dataset", "逐个评估数据集"),
        (
            "A loss for each of the evaluation datasets, beside that of all.",
            "除总体损失外，另给出每个评估数据集的损失。",
        ),
    )
    per_device_eval_batch_size: int = opt(
        1,
        "eval",
        ("Evaluation batch size", "评估批大小"),
        ("Sequences per device.", "每设备序列数。"),
        ge=1,
        le=4096,
    )

    do_predict: bool = opt(
        False,
        "eval",
        ("Predict", "预测"),
        (
            "Answers eval_dataset with the model as it is after the training, or without one (do_train off), and scores the answers: BLEU-4, ROUGE, exact match.",
            "用训练后的模型（或关闭 do_train 时直接用现有模型）回答 eval_dataset，并计算 BLEU-4、ROUGE 与完全一致率。",
        ),
    )
    max_new_tokens: int = opt(
        512,
        "eval",
        ("Longest prediction", "预测最大长度"),
        ("Tokens of a predicted answer at most.", "预测回答的最大 token 数。"),
        ge=1,
        le=32_768,
    )
    temperature: float = opt(
        0.0,
        "eval",
        ("Temperature of predictions", "预测温度"),
        ("0 takes the likeliest token each time.", "0 表示每次取概率最大的 token。"),
        ge=0,
        le=2,
    )
    top_p: float = opt(
        1.0,
        "eval",
        ("Top p of predictions", "预测 top p"),
        ("Draws from the likeliest tokens of this share.", "只从累计概率达到该值的 token 中抽取。"),
        ge=0,
        le=1,
    )

    early_stopping_steps: int | None = opt(
        None,
        "eval",
        ("Early stopping", "提前停止"),
        (
            "Stop after this many evaluations without a lower loss; empty: never.",
            "连续多少次评估损失不再降低即停止；留空为不启用。",
        ),
        ge=1,
    )
    sample_prompts: str | None = opt(
        None,
        "eval",
        ("Sample prompts", "示例问题"),
        (
            "One a line; the model answers them at each evaluation, or at each checkpoint without evaluations.",
            "每行一个；模型在每次评估时作答，不评估则在每个检查点作答。",
        ),
    )
    sample_max_new_tokens: int = opt(
        64,
        "eval",
        ("Sample length", "示例长度"),
        ("Tokens of a sample answer at most.", "示例回答的最大 token 数。"),
        ge=1,
        le=4096,
    )

    # output
    output_dir: str | None = opt(
        None,
        "output",
        ("Output folder", "输出目录"),
        (
            "Empty: runs/<id>. A relative path lies in the workspace.",
            "留空为 runs/<编号>；相对路径位于工作区内。",
        ),
    )
    overwrite_output_dir: bool = opt(
        False,
        "output",
        ("Overwrite", "覆盖"),
        ("Replace a finished run in the output folder.", "替换输出目录中已结束的运行。"),
    )
    logging_steps: float = opt(
        5,
        "output",
        ("Logging steps", "日志步数"),
        ("Steps between log lines; below 1: a share of all steps.", "日志间隔步数；小于 1 为占总步数的比例。"),
        gt=0,
    )
    save_steps: float = opt(
        100,
        "output",
        ("Save steps", "保存步数"),
        ("Steps between checkpoints; below 1: a share of all steps.", "检查点间隔步数；小于 1 为占总步数的比例。"),
        gt=0,
    )
    save_strategy: Literal["no", "steps", "epoch"] = opt(
        "steps", "output", ("Save every", "保存时机"), ("no, steps or epoch.", "no、steps 或 epoch。")
    )
    save_total_limit: int | None = opt(
        None,
        "output",
        ("Keep checkpoints", "保留检查点数"),
        ("The oldest are deleted; empty: keep all.", "删除最旧的；留空为全部保留。"),
        ge=1,
    )
    load_best_model_at_end: bool = opt(
        False,
        "output",
        ("End with the best", "以最佳结束"),
        (
            "At the end the checkpoint with the lowest evaluation loss is taken instead of the last step.",
            "结束时取评估损失最低的检查点，而不是最后一步。",
        ),
    )
    plot_loss: bool = opt(
        True, "output", ("Plot loss", "绘制损失"), ("Writes training_loss.png.", "写出 training_loss.png。")
    )
    report_to: str = opt(
        "none",
        "output",
        ("Report to", "上报到"),
        (
            "none, tensorboard, wandb, trackio, swanlab; comma-separated.",
            "none、tensorboard、wandb、trackio、swanlab，逗号分隔。",
        ),
    )
    webhook_url: str | None = opt(
        None,
        "output",
        ("Webhook", "Webhook"),
        (
            "Gets a JSON message (id, state, reason, step) when the run ends.",
            "运行结束时接收 JSON 消息（id、state、reason、step）。",
        ),
        pattern=r"https?://\S+",
    )
    push_to_hub: bool = opt(
        False,
        "output",
        ("Upload to the hub", "上传到 Hub"),
        (
            "The adapter or model and its tokenizer go to the Hugging Face hub, with the token of HF_TOKEN or hf auth login.",
            "将适配器或模型及其分词器上传到 Hugging Face Hub，使用 HF_TOKEN 或 hf auth login 的令牌。",
        ),
    )
    hub_model_id: str | None = opt(
        None,
        "output",
        ("Repository", "仓库"),
        ("Such as name/model; empty: the run's id.", "如 name/model；留空为运行编号。"),
        pattern=r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?",
        max_length=96,
    )
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = opt(
        "every_save",
        "output",
        ("When to upload", "上传时机"),
        (
            "At the end, or also at each checkpoint; whole checkpoints go to last-checkpoint or to folders of their own.",
            "仅在结束时，或每个检查点也上传；完整检查点存入 last-checkpoint 或各自的文件夹。",
        ),
    )
    hub_private_repo: bool = opt(
        True,
        "output",
        ("Private repository", "私有仓库"),
        ("A new repository is seen by its owner only.", "新仓库仅所有者可见。"),
    )
    resume_from_checkpoint: str | None = opt(
        None,
        "output",
        ("Resume from", "从检查点恢复"),
        ("A checkpoint folder, or true for the last one.", "检查点文件夹，或 true 表示最后一个。"),
        affects=("path",),
    )

    @property
    def packs(self) -> bool:
        """Whether rows are joined to full sequences. Those of preferences are laid end to end without that."""
        return (self.packing or self.neat_packing or (self.stage == "pt" and not self.streaming)) and not (
            self.preferences
        )

    def shares(self) -> list[float]:
        """`interleave_probs` as shares that add up to 1; empty if there are none. Raises ValueError where they are no
        shares."""
        numbers = [float(part) for part in (self.interleave_probs or "").split(",") if part.strip()]
        if any(not 0 < number < float("inf") for number in numbers):
            raise ValueError("shares should be above 0")
        return [number / sum(numbers) for number in numbers]

    @property
    def has_reference(self) -> bool:
        """Whether the loss looks at a reference model, scored once or asked in every step."""
        return self.needs_reference or self.use_asft_loss

    @property
    def keeps_reference(self) -> bool:
        """Whether a second model stays in memory: for ASFT, where it is not the model without its adapters."""
        other = bool(self.ref_model or self.ref_model_adapters)
        return self.use_asft_loss and (other or self.finetuning_type in ("full", "freeze"))

    @property
    def new_tokens(self) -> bool:
        """Whether embedding and head may get rows."""
        return bool(self.add_tokens or self.add_special_tokens or self.new_special_tokens_config or self.resize_vocab)

    def every(self, option: str, steps: int) -> int:
        """`eval_steps`, `save_steps` or `logging_steps` of a run of so many steps; a share of these below 1."""
        value = getattr(self, option) or self.logging_steps
        return max(1, math.ceil(steps * value)) if value < 1 else int(value)
