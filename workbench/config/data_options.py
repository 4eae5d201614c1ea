"""Options of a run: its stage and its data."""

from typing import Literal

from workbench.config.model_options import ModelOptions
from workbench.config.option import opt
from workbench.config.stage_options import StageOptions


class DataOptions(StageOptions, ModelOptions):
    """What a run is called, what it does, and what it learns from."""

    run_name: str | None = opt(
        None,
        "output",
        ("Run name", "运行名称"),
        ("Shown in lists; part of the run's folder name.", "显示在列表中，并作为文件夹名的一部分。"),
        basic=True,
        max_length=80,
    )
    do_train: bool = opt(
        True,
        "train",
        ("Train", "执行训练"),
        (
            "Off only with do_predict: the run then answers and trains nothing.",
            "仅在 do_predict 时可关闭：只作答，不训练。",
        ),
    )
    finetuning_type: Literal["lora", "full", "freeze", "oft"] = opt(
        "lora",
        "lora",
        ("Method", "方法"),
        (
            "lora and oft train small adapters; full trains all weights, freeze those of some layers (neither on quantized weights).",
            "lora 与 oft 训练小适配器；full 训练全部权重，freeze 训练部分层的权重（后两者不可量化）。",
        ),
    )

    # data
    dataset: str | None = opt(
        None,
        "data",
        ("Datasets", "数据集"),
        ("Names from dataset_info.json, comma-separated.", "dataset_info.json 中的名称，逗号分隔。"),
        basic=True,
        affects=("data",),
    )
    dataset_dir: str = opt(
        "data",
        "data",
        ("Dataset folder", "数据集目录"),
        ("The folder with dataset_info.json.", "含 dataset_info.json 的文件夹。"),
        affects=("data", "path"),
    )
    eval_dataset: str | None = opt(
        None,
        "eval",
        ("Evaluation datasets", "评估数据集"),
        ("Separate datasets to evaluate on.", "单独用于评估的数据集。"),
        affects=("data",),
    )
    cutoff_len: int = opt(
        2048,
        "data",
        ("Cutoff length", "截断长度"),
        (
            "Longest sequence in tokens; longer conversations lose their oldest turns. 0: no limit.",
            "最长序列（token）；更长的对话会去掉最早的轮次。0 表示不限。",
        ),
        basic=True,
        ge=0,
        le=1_048_576,
        affects=("data",),
    )
    max_samples: int | None = opt(
        None,
        "data",
        ("Max samples", "最大样本数"),
        ("At most this many rows of each dataset.", "每个数据集最多取多少行。"),
        ge=1,
        affects=("data",),
    )
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = opt(
        "concat",
        "data",
        ("Mixing", "混合方式"),
        (
            "Several datasets one after the other, or interleaved until the first (under) or the last one (over: others repeat, once: none repeats) is used up.",
            "多个数据集依次拼接，或交错直到最短（under）或最长的用尽（over 会重复较短的，once 不重复）。",
        ),
        affects=("data",),
    )
    interleave_probs: str | None = opt(
        None,
        "data",
        ("Mixing shares", "混合比例"),
        (
            "For interleaving: one share for each dataset, such as 0.7,0.3. Empty: in turn.",
            "用于交错：每个数据集一个比例，如 0.7,0.3。留空为轮流。",
        ),
        affects=("data",),
    )
    add_tokens: str | None = opt(
        None,
        "data",
        ("New tokens", "新增 token"),
        (
            "Texts that become one token each, comma-separated. With adapters, embedding and head are then trained, too.",
            "各自成为一个 token 的文本，逗号分隔。使用适配器时会同时训练嵌入与输出头。",
        ),
        affects=("data",),
        max_length=20_000,
    )
    add_special_tokens: str | None = opt(
        None,
        "data",
        ("New special tokens", "新增特殊 token"),
        ("As new tokens, but left out of answers as shown.", "同新增 token，但在显示回答时略去。"),
        affects=("data",),
        max_length=20_000,
    )
    new_special_tokens_config: str | None = opt(
        None,
        "data",
        ("File of special tokens", "特殊 token 文件"),
        (
            "YAML with a line `token: description` for each; they count instead of the new special tokens.",
            "YAML 文件，每行“token: 描述”；代替上面的新增特殊 token。",
        ),
        affects=("data", "path"),
    )
    init_special_tokens: Literal["noise_init", "desc_init", "desc_init_w_noise"] = opt(
        "noise_init",
        "data",
        ("Start of special tokens", "特殊 token 的初值"),
        (
            "The mean of all rows with noise, the mean of the tokens of its description, or that with noise.",
            "全部行的均值加噪声、其描述各 token 的均值，或后者加噪声。",
        ),
    )
    resize_vocab: bool = opt(
        False,
        "data",
        ("Rows for all tokens", "补足词表行"),
        (
            "Embedding and head get rows for all tokens of the tokenizer, and are trained with adapters. New tokens do so anyway.",
            "为分词器的全部 token 补足嵌入与输出头的行，并随适配器训练。新增 token 时总是如此。",
        ),
    )
    skip_broken_rows: bool = opt(
        False,
        "data",
        ("Skip broken rows", "跳过损坏的行"),
        (
            "Train on the rest when a dataset has rows that cannot be used; otherwise they stop the run.",
            "数据集中有无法使用的行时用其余行训练；否则运行会停止。",
        ),
        affects=("data",),
    )
    packing: bool = opt(
        False,
        "data",
        ("Packing", "序列打包"),
        (
            "Joins short conversations to full sequences; they do not see each other.",
            "将短对话拼成满长序列，彼此不可见。",
        ),
        affects=("data",),
    )
    neat_packing: bool = opt(
        False,
        "data",
        ("Neat packing", "无污染打包"),
        (
            "Same as packing here: packed conversations are always kept apart.",
            "与 packing 相同：打包的对话始终互相隔离。",
        ),
        affects=("data",),
    )
    train_on_prompt: bool = opt(
        False,
        "data",
        ("Train on prompt", "训练提示部分"),
        ("Loss on user and system text too.", "对用户与系统文本也计算损失。"),
        affects=("data",),
    )
    mask_history: bool = opt(
        False,
        "data",
        ("Mask history", "屏蔽历史"),
        ("Loss on the last answer only.", "只对最后一个回答计算损失。"),
        affects=("data",),
    )
    disable_shuffling: bool = opt(
        False,
        "data",
        ("Keep the order", "保持顺序"),
        ("Rows come in the order of the dataset, in every epoch.", "每轮都按数据集中的顺序取行。"),
    )
    streaming: bool = opt(
        False,
        "data",
        ("Read while training", "边训练边读取"),
        (
            "Rows are tokenized as they come, for data that is too large to tokenize first. Needs max steps.",
            "读到时才分词，适合过大而无法预先分词的数据。需要设置最大步数。",
        ),
        affects=("data",),
    )
    buffer_size: int = opt(
        16384,
        "data",
        ("Shuffle window", "打乱窗口"),
        ("Rows that are shuffled among each other while streaming.", "边读边训时相互打乱的行数。"),
        ge=1,
        le=10_000_000,
    )
    tokenized_path: str | None = opt(
        None,
        "data",
        ("Tokenized rows", "已分词数据"),
        (
            "A folder with tokenized rows, which are used instead of the datasets; where there is none, the run writes it.",
            "已分词数据的文件夹，存在则代替数据集使用；不存在则由本次运行写入。",
        ),
        affects=("data",),
    )
    preprocessing_num_workers: int | None = opt(
        None,
        "data",
        ("Preprocessing workers", "预处理进程数"),
        ("Processes that tokenize; empty: all cores.", "分词进程数；留空为全部核心。"),
        ge=1,
        le=256,
        affects=("data",),
    )
    dataloader_num_workers: int = opt(
        0,
        "data",
        ("Loader workers", "加载进程数"),
        ("Processes that feed batches.", "供给批次的进程数。"),
        ge=0,
        le=64,
    )
