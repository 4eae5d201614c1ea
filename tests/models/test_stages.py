"""The stages on preferences: the same losses as TRL's own trainers, padded and laid end to end, in float32."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from workbench.config.run_config import validated
from workbench.data.training_set import load_data
from workbench.errors import UserError
from workbench.models.reward import check_answers, reward_model
from workbench.models.tuning import tuned
from workbench.runs.run import create_run
from workbench.train import trainer as trainer_module
from workbench.train.fast.strategy import PlainStep, RowStep
from workbench.train.references import References
from workbench.train.trainer import build_trainer

STEPS = 20
# ends where the end token does, so that TRL's completions are what we train
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words(generator: random.Random) -> str:
    return " ".join(generator.choice(["red", "green", "blue", "seven", "of"]) for _ in range(generator.randint(1, 12)))


@pytest.fixture(scope="module")
def model_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "model"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    generator, made = random.Random(3), []
    for number in range(24):
        system = [{"role": "system", "content": "Be short."}] if number % 3 == 0 else []
        made.append(
            {
                "prompt": [*system, {"role": "user", "content": words(generator)}],
                "chosen": [{"role": "assistant", "content": "yes " + words(generator)}],
                "rejected": [{"role": "assistant", "content": "no " + words(generator)}],
            }
        )
    return made


@pytest.fixture
def setting(tmp_path, workspace, model_folder, monkeypatch):
    """`prepare(rows, **options)` -> `(config, model, tokenizer, trainer)` of a run."""
    arguments = trainer_module.common_arguments

    def in_order(*given):  # as TRL's KTO trainer wants it
        return arguments(*given) | {"train_sampling_strategy": "sequential"}

    monkeypatch.setattr(trainer_module, "common_arguments", in_order)

    def prepare(rows, *, padded: bool = False, adapter=None, folder=model_folder, made=None, **options):
        if padded:
            monkeypatch.setattr(trainer_module, "why_padded", lambda config, causal: "padding is wanted here")
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / "rows.json").write_text(json.dumps(rows))
        ranking = {"ranking": True} if "chosen" in rows[0] else {}
        (data / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json", **ranking}}))
        config = validated(
            {
                "model_name_or_path": str(folder), "dataset": "rows", "dataset_dir": str(data),
                "max_steps": STEPS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                "learning_rate": 5e-4, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
                "lora_rank": 4, "lora_alpha": 8, "disable_gradient_checkpointing": True, "cutoff_len": 0,
                "adapter_name_or_path": adapter and str(adapter), **options,
            }
        )  # fmt: skip
        run = create_run(workspace, config)
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def progress(*_):
            pass

        train_rows, held_out = load_data(config, workspace, tokenizer, progress, log=lambda text: None)
        references = References(config, workspace, torch.float32, progress, print) if config.needs_reference else None
        if references and references.other:
            train_rows, held_out = references.from_other(train_rows, held_out)
        model = made(config) if made else AutoModelForCausalLM.from_pretrained(folder)
        if config.stage == "rm":
            model = reward_model(model, config.seed)
        torch.manual_seed(5)
        model = tuned(model, config, workspace, run.path, print)
        stop = SimpleNamespace(requested=False)
        trainer = build_trainer(run, config, model, tokenizer, train_rows, held_out, torch.float32, stop, references)
        assert isinstance(trainer.step_strategy, PlainStep if padded else RowStep)
        return config, model, tokenizer, trainer

    return prepare


def losses_of(trainer) -> list[float]:
    with torch.compiler.set_stance("force_eager"):  # TRL compiles its head
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def plain(trainer_class, config_class, model_folder, rows, tmp_path, *, model=None, **options):
    """TRL's own trainer on the same rows, with a LoRA of the same start."""
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.bos_token = None  # some of TRL's trainers put one before a template's text
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(model_folder)
    arguments = config_class(
        **{
            "output_dir": str(tmp_path / "trl"), "per_device_train_batch_size": 4, "learning_rate": 5e-4,
            "max_steps": STEPS, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
            "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None,
            "train_sampling_strategy": "sequential", "seed": 42, "data_seed": 42, "disable_tqdm": True, **options,
        }
    )  # fmt: skip
    return trainer_class(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def learns(losses: list[float]) -> bool:
    return len(losses) == STEPS and abs(losses[-1] - losses[0]) > 0.02 * abs(losses[0])


def both_ways(setting, rows, **options) -> list[list[float]]:
    """Losses laid end to end, and padded."""
    return [losses_of(setting(rows, padded=padded, **options)[-1]) for padded in (False, True)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"pref_loss": "sigmoid"}, {"loss_type": ["sigmoid"]}),
        ({"pref_loss": "hinge", "pref_beta": 0.05}, {"loss_type": ["hinge"], "beta": 0.05}),
        ({"pref_loss": "ipo"}, {"loss_type": ["ipo"]}),
        ({"pref_loss": "sigmoid", "pref_ftx": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    ],
    ids=["sigmoid", "hinge", "ipo", "with sft"],
)
def test_dpo_is_trls(ours, theirs, setting, rows, model_folder, tmp_path):
    from trl import DPOConfig, DPOTrainer

    size = {}
    if "pref_ftx" in ours:  # the mean over a batch's tokens there, over answers here: the same for one answer
        size = {"per_device_train_batch_size": 1}
    expected = losses_of(plain(DPOTrainer, DPOConfig, model_folder, rows, tmp_path, **theirs, **size))
    for found in both_ways(setting, rows, stage="dpo", finetuning_type="full", **ours, **size):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5) and learns(found)


def test_simpo_is_trls(setting, rows, model_folder, tmp_path):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.3, "beta": 2.0, "max_completion_length": 300}
    expected = losses_of(plain(CPOTrainer, CPOConfig, model_folder, rows, tmp_path, **options))
    ours = {"pref_loss": "simpo", "simpo_gamma": 0.3, "pref_beta": 2.0}
    for found in both_ways(setting, rows, stage="dpo", finetuning_type="full", **ours):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5) and learns(found)


def test_kto_is_trls(setting, rows, model_folder, tmp_path):
    """One batch for all rows: TRL estimates the KL term over a batch, of answers that are shifted within it."""
    from trl import KTOConfig, KTOTrainer

    rows = rows[:12]
    labeled = [
        {"prompt": row["prompt"], "completion": row["chosen" if number % 3 else "rejected"], "label": bool(number % 3)}
        for number, row in enumerate(rows)
    ]
    size = {"per_device_train_batch_size": len(rows)}
    theirs = plain(KTOTrainer, KTOConfig, model_folder, labeled, tmp_path, desirable_weight=0.7, **size)
    expected = losses_of(theirs)
    ours = {"stage": "kto", "kto_chosen_weight": 0.7, "finetuning_type": "full", **size}
    for found in both_ways(setting, labeled, **ours):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5) and learns(found)


def test_a_reward_model_is_trls(setting, rows, model_folder, tmp_path):
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    model.score = torch.nn.Linear(64, 1, bias=False)
    start = model.score.weight.detach().clone()
    expected = losses_of(plain(RewardTrainer, RewardConfig, model_folder, rows, tmp_path, model=model))
    for padded in (False, True):
        trainer = setting(rows, padded=padded, stage="rm", finetuning_type="full")[-1]
        trainer.model.score.weight.data.copy_(start)
        assert losses_of(trainer) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert min(expected) < 0.65  # it learns: ln 2 at the start


def test_orpo_adds_the_odds_ratio_to_the_loss_of_the_answer(setting, rows, model_folder):
    """The first loss against its formula (arXiv 2403.07691, equations 6 and 7), from whole logits."""
    _, _, tokenizer, trainer = setting(rows[:4], stage="dpo", pref_loss="orpo", pref_beta=0.3, finetuning_type="full")
    model, losses = AutoModelForCausalLM.from_pretrained(model_folder), []
    for row in rows[:4]:
        means = []
        for answer in (row["chosen"], row["rejected"]):
            whole = tokenizer.apply_chat_template(row["prompt"] + answer, return_tensors="pt", return_dict=True)[
                "input_ids"
            ]
            start = len(
                tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
            )
            with torch.no_grad():
                logps = model(whole).logits[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[start - 1 :, 0]
            means.append(logps.mean())
        odds = [mean - torch.log(1 - mean.exp()) for mean in means]
        losses.append(-means[0] - 0.3 * torch.nn.functional.logsigmoid(odds[0] - odds[1]))
    assert losses_of(trainer)[0] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_the_reference_of_an_adapter_is_the_model_without_it(setting, rows, tmp_path, model_folder, tiny_model):
    """A new adapter, one that is continued, and another model as the reference: the first loss of each by hand."""
    trainer = setting(rows, stage="dpo", dataset="rows")[-1]
    found = losses_of(trainer)
    assert found[0] == pytest.approx(0.6931472, abs=1e-6) and learns(found)  # ln 2: nothing has changed yet
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen"} <= trainer.state.log_history[0].keys()
    folder = tmp_path / "adapter"
    trainer.save_model(str(folder))
    continued = setting(rows, stage="dpo", adapter=folder)[-1]
    first = losses_of(continued)[0]
    assert first < 0.6 and continued.state.log_history[0]["rewards/margins"] > 0.1
    against_itself = setting(rows, stage="dpo", adapter=folder, ref_model_adapters=str(folder))[-1]
    assert losses_of(against_itself)[0] == pytest.approx(0.6931472, abs=1e-6)
    torch.manual_seed(9)
    other = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(model_folder).config)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "other")
    foreign = setting(rows, stage="dpo", ref_model=str(tmp_path / "other"))[-1]
    assert abs(losses_of(foreign)[0] - 0.6931472) > 0.01


def test_references_are_computed_once(setting, rows, monkeypatch):
    from workbench.train import references

    losses_of(setting(rows, stage="dpo")[-1])
    monkeypatch.setattr(references, "log_probabilities", lambda *_: pytest.fail("they are known"))
    assert losses_of(setting(rows, stage="dpo")[-1])[0] == pytest.approx(0.6931472, abs=1e-6)
    with pytest.raises(pytest.fail.Exception, match="they are known"):
        setting(rows[:-1], stage="dpo")  # other rows


def test_a_reward_model_is_no_chat_model(setting, rows, tmp_path):
    trainer = setting(rows, stage="rm")[-1]
    losses = losses_of(trainer)
    assert losses[0] != losses[-1] and trainer.evaluate(trainer.train_dataset)["eval_rewards/accuracies"] >= 0
    trainer.save_model(str(tmp_path / "scores"))
    with pytest.raises(UserError) as error:
        check_answers(tmp_path / "scores")
    assert error.value.message.code == "adapter_scores"


@pytest.mark.parametrize(
    ("stage", "change", "code"),
    [
        ("dpo", lambda row: {"prompt": row["prompt"], "completion": row["chosen"]}, "dataset_no_pairs"),
        ("rm", lambda row: {"prompt": row["prompt"], "completion": row["chosen"]}, "dataset_no_pairs"),
        ("kto", lambda row: {"prompt": row["prompt"], "completion": row["chosen"]}, "dataset_no_labels"),
        ("kto", lambda row: {"prompt": row["prompt"], "completion": row["chosen"], "label": True}, "one_label"),
        ("dpo", lambda row: row | {"rejected": row["chosen"]}, "dataset_broken"),
    ],
)
def test_data_that_a_stage_cannot_learn_from(stage, change, code, setting, rows):
    with pytest.raises(UserError) as error:
        setting([change(row) for row in rows], stage=stage)
    assert error.value.message.code == code


@pytest.mark.parametrize("cutoff", [50, 70, 110])
def test_a_pair_that_is_too_long_keeps_one_question(cutoff, model_folder):
    from workbench.data.encode import Encoder
    from workbench.data.formats import Example

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    encoder = Encoder(tokenizer, cutoff_len=cutoff, kind="pairs")
    turns = [
        {"role": role, "content": f"{role} {number} " + "x" * 12}
        for number in range(3)
        for role in ("user", "assistant")
    ]
    question = {"role": "user", "content": "What is the answer to " + "everything " * 4}
    example = Example(
        [*turns, question],
        chosen=[{"role": "assistant", "content": "Forty-two"}],
        rejected=[{"role": "assistant", "content": "Forty-two, or so I was told"}],
    )
    chosen, rejected = encoder.encode_pair(example)
    assert max(len(chosen.input_ids), len(rejected.input_ids)) <= cutoff
    starts = [next(i for i, label in enumerate(one.labels) if label != -100) for one in (chosen, rejected)]
    assert starts[0] == starts[1] and chosen.input_ids[: starts[0]] == rejected.input_ids[: starts[0]]
    assert tokenizer.decode([i for i in chosen.labels if i != -100]) == "Forty-two<|im_end|>"
    assert chosen.trained < rejected.trained


@pytest.mark.parametrize("balance", [None, 0.3])
def test_a_mixture_in_4_bits_learns_from_pairs(balance, setting, rows, tiny_moe, workspace):
    """LoRA on packed experts: end to end as padded, with the balance loss of its routers, too."""
    from workbench.models.load import load_model

    def made(config):
        return load_model(config, workspace, dtype=torch.float32, split=False, progress=lambda *_: None, log=print)

    options = {"stage": "dpo", "quantization_bit": 4, "moe_aux_loss_coef": balance, "folder": tiny_moe, "made": made}
    joined, padded = both_ways(setting, rows, **options)
    assert joined[0] == pytest.approx(0.6931472, abs=1e-6) and learns(joined)
    assert joined == pytest.approx(padded, rel=1e-3)
