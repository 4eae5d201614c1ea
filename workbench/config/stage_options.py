"""Options of the stages of training: which one, and what only some of them have. The names are LLaMA-Factory's."""

from typing import Literal

from workbench.config.option import Options, opt, split_names

STAGES = ("sft", "pt", "dpo", "kto", "rm", "grpo")
REWARDS = ("answer", "json", "length", "regex", "file", "model")
PREFERENCE_STAGES = ("dpo", "kto", "rm")
# `pref_loss` without a reference model
WITHOUT_REFERENCE = ("orpo", "simpo")


class StageOptions(Options):
    """What a run does with its data."""

    stage: Literal[STAGES] = opt(  # type: ignore[valid-type]
        "sft",
        "train",
        ("Stage", "阶段"),
        (
            "sft: learn answers. pt: learn plain text. dpo: learn which of two answers is better. kto: learn from those"
            " labeled wanted or not. rm: a reward model, which scores answers. grpo: learn from rewards.",
            "sft：学习回答。pt：学习纯文本。dpo：学习两个回答中哪个更好。kto：从标注的回答中学习。rm：给回答打分的奖励模型。"
            "grpo：从自己回答的奖励中学习。",
        ),
        basic=True,
        affects=("data",),
    )
    pref_beta: float = opt(
        0.1,
        "preference",
        ("Beta", "Beta"),
        (
            "For dpo and kto: how closely the model is held to the reference. Lower lets it go further.",
            "用于 dpo 与 kto：对参考模型的约束强度，越低偏离越大。",
        ),
        gt=0,
        le=1000,
    )
    pref_loss: Literal["sigmoid", "hinge", "ipo", "orpo", "simpo"] = opt(
        "sigmoid",
        "preference",
        ("Preference loss", "偏好损失"),
        (
            "For dpo. sigmoid is DPO's own; orpo and simpo need no reference.",
            "用于 dpo。sigmoid 为 DPO 原本的损失；orpo 与 simpo 不需要参考模型。",
        ),
    )
    pref_ftx: float = opt(
        0.0,
        "preference",
        ("Weight of the SFT loss", "SFT 损失权重"),
        (
            "For dpo and kto: how much the loss of the chosen answer counts beside the preference loss; 0: not.",
            "用于 dpo 与 kto：可取回答的 SFT 损失所占权重；0 为不计。",
        ),
        ge=0,
        le=1000,
    )
    dpo_label_smoothing: float = opt(
        0.0,
        "preference",
        ("Label smoothing", "标签平滑"),
        (
            "For dpo with sigmoid: the share of pairs that are thought to be labeled the wrong way round.",
            "用于 dpo 的 sigmoid：估计有多大比例的偏好对标反了。",
        ),
        ge=0,
        lt=0.5,
    )
    simpo_gamma: float = opt(
        0.5,
        "preference",
        ("SimPO margin", "SimPO 间隔"),
        ("For simpo: by how much a chosen answer should be better.", "用于 simpo：可取回答应高出的奖励差。"),
        ge=0,
        le=1000,
    )
    kto_chosen_weight: float = opt(
        1.0,
        "preference",
        ("Weight of wanted answers", "可取回答权重"),
        ("For kto: higher where there are few of them.", "用于 kto：数量较少时可调高。"),
        ge=0,
        le=1000,
    )
    kto_rejected_weight: float = opt(
        1.0,
        "preference",
        ("Weight of unwanted answers", "不可取回答权重"),
        ("For kto: higher where there are few of them.", "用于 kto：数量较少时可调高。"),
        ge=0,
        le=1000,
    )
    ref_model: str | None = opt(
        None,
        "preference",
        ("Reference model", "参考模型"),
        (
            "For dpo, kto and the ASFT loss. Empty: the model itself without the new adapter. Its scores of the answers"
            " are computed once, before the training; for ASFT it stays in memory.",
            "用于 dpo、kto 与 ASFT 损失。留空：不带新适配器的模型本身。其对回答的评分在训练前一次算好；ASFT 则一直占用内存。",
        ),
        affects=("path",),
    )
    ref_model_adapters: str | None = opt(
        None,
        "preference",
        ("Adapter of the reference", "参考模型的适配器"),
        ("A run or a folder with a PEFT adapter.", "某次运行，或含 PEFT 适配器的文件夹。"),
        affects=("path",),
    )
    ref_model_quantization_bit: Literal[4, 8] | None = opt(
        None,
        "preference",
        ("Quantization of the reference", "参考模型的量化"),
        ("4, 8, or empty for none.", "4、8，或留空不量化。"),
    )

    reward_funcs: str = opt(
        "answer",
        "reward",
        ("Rewards", "奖励"),
        (
            "For grpo, comma-separated. answer: as in the dataset, or the same last number. json: valid JSON. length:"
            " not longer than reward_length. regex: reward_regex is found. file: the function reward of reward_file."
            " model: the score of reward_model.",
            "用于 grpo，逗号分隔。answer：与数据集一致或最后的数字相同。json：合法 JSON。length：不超过 reward_length。"
            "regex：匹配 reward_regex。file：reward_file 中的 reward 函数。model：reward_model 的评分。",
        ),
    )
    reward_model: str | None = opt(
        None,
        "reward",
        ("Reward model", "奖励模型"),
        (
            "For model: a run of stage rm, or a folder with a reward model. It stays in memory beside the model.",
            "用于 model：rm 阶段的运行，或含奖励模型的文件夹。它与模型一同占用内存。",
        ),
        affects=("path",),
    )
    reward_weights: str | None = opt(
        None,
        "reward",
        ("Weights", "权重"),
        ("One number for each reward, such as 1,0.2. Empty: 1 each.", "每个奖励一个数，如 1,0.2。留空：均为 1。"),
    )
    reward_regex: str | None = opt(
        None,
        "reward",
        ("Pattern", "正则表达式"),
        ("For regex: what an answer should contain.", "用于 regex：回答应包含的内容。"),
        max_length=1000,
    )
    reward_length: int = opt(
        500,
        "reward",
        ("Characters", "字符数"),
        ("For length: up to so many are worth 1, twice as many 0.", "用于 length：不超过此数得 1，达到两倍得 0。"),
        ge=1,
        le=1_000_000,
    )
    reward_file: str | None = opt(
        None,
        "reward",
        ("Python file", "Python 文件"),
        (
            "For file: it has a function reward(prompts, completions, answer, **columns), with a number for each.",
            "用于 file：含函数 reward(prompts, completions, answer, **columns)，为每个回答返回一个数。",
        ),
        affects=("path",),
    )
    trust_reward_code: bool = opt(
        False,
        "reward",
        ("Trust the file", "信任该文件"),
        ("Runs reward_file. Only for a file that you know.", "会执行 reward_file，仅用于你了解的文件。"),
    )
    num_generations: int = opt(
        4,
        "reward",
        ("Answers a question", "每题回答数"),
        (
            "For grpo. Batch size times gradient accumulation must be a multiple of it.",
            "用于 grpo。批大小乘以梯度累积须为其倍数。",
        ),
        ge=2,
        le=256,
    )
    max_completion_length: int = opt(
        256,
        "reward",
        ("Answer length", "回答长度"),
        ("For grpo: tokens of an answer at most.", "用于 grpo：回答的最大 token 数。"),
        ge=1,
        le=65_536,
    )
    sampling_temperature: float = opt(
        1.0,
        "reward",
        ("Temperature", "温度"),
        ("For grpo: of the answers that are learned from.", "用于 grpo：所学回答的采样温度。"),
        gt=0,
        le=5,
    )
    grpo_beta: float = opt(
        0.0,
        "reward",
        ("KL weight", "KL 权重"),
        (
            "For grpo: how closely the model is held to what it was; 0: not.",
            "用于 grpo：对原模型的约束强度；0 为不约束。",
        ),
        ge=0,
        le=10,
    )

    @property
    def preferences(self) -> bool:
        """Whether the rows are of answers that are compared, two conversations each."""
        return self.stage in PREFERENCE_STAGES

    @property
    def scores_answers(self) -> bool:
        """Whether a reward model is among the rewards."""
        return self.stage == "grpo" and "model" in split_names(self.reward_funcs)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return self.stage == "kto" or (self.stage == "dpo" and self.pref_loss not in WITHOUT_REFERENCE)
