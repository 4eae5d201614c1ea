"""GRPO: questions as the model sees them, tools included, and a reward model that scores what it answers."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.models import test_stages
from workbench.config.run_config import validated
from workbench.data.prompts import load_prompts
from workbench.data.training_set import encoder_of
from workbench.errors import UserError
from workbench.models.reward import locate_reward_model
from workbench.models.tuning import tuned
from workbench.runs.run import create_run, list_runs
from workbench.train import answer_scores as answer_scores_module
from workbench.train.answer_scores import answer_scores
from workbench.train.trainer import build_trainer

model_folder, setting = test_stages.model_folder, test_stages.setting
TOOL = {"name": "search", "description": "Looks up.", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "search", "arguments": {"q": "x"}}}
# with the tools in front, and calls between markers
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def with_tools(model_folder, tmp_path):
    """A model folder whose template renders tools, and a file of rows with and without."""
    folder = tmp_path / "tools"
    shutil.copytree(model_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TOOL_TEMPLATE
    tokenizer.save_pretrained(folder)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    called = [turns[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    after = [*called, {"role": "tool", "content": "found"}, turns[1]]
    rows = [{"messages": turns}, {"messages": turns, "tools": json.dumps([TOOL])},
            {"messages": called, "tools": json.dumps([TOOL])}, {"messages": after, "tools": json.dumps([TOOL])}]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return folder, file


def asked(folder, file, workspace, **more):
    config = validated({"model_name_or_path": str(folder), "dataset": str(file), "stage": "grpo", "num_generations": 2,
                        "per_device_train_batch_size": 4, "max_completion_length": 3, "max_steps": 2,
                        "reward_funcs": "length", "plot_loss": False, "save_strategy": "no", **more})  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, _ = load_prompts(config, workspace, encoder_of(config, tokenizer), lambda *_: None, lambda line: None)
    return config, tokenizer, rows


def test_questions_come_with_their_tools_and_earlier_calls(with_tools, workspace):
    folder, file = with_tools
    _, tokenizer, rows = asked(folder, file, workspace)
    plain, tooled, calls, after = rows
    end = tokenizer.eos_token
    assert plain["rendered"] == f"user: Who?{end}\nassistant: " and plain["answer"] == "Nobody."
    assert tooled["rendered"].startswith("<tools>[") and tooled["rendered"].endswith(plain["rendered"])
    assert tooled["answer"] == "Nobody." and '"search"' in tooled["rendered"]
    assert calls["answer"].startswith("<call>") and calls["answer"].endswith("</call>") and '"q"' in calls["answer"]
    assert "<call>" in after["rendered"] and f"tool: found{end}" in after["rendered"]
    known = json.loads(after["question"])
    assert known["messages"][1]["tool_calls"] and known["tools"]
    assert [m["role"] for m in after["prompt"]] == ["user", "assistant", "tool"]


def test_grpo_asks_what_was_rendered(with_tools, workspace, monkeypatch):
    folder, file = with_tools
    config, tokenizer, rows = asked(folder, file, workspace)
    seen: list[str] = []
    run = create_run(workspace, config)
    model = tuned(AutoModelForCausalLM.from_pretrained(folder), config, workspace, run.path, print)
    stop = SimpleNamespace(requested=False)
    trainer = build_trainer(run, config, model, tokenizer, rows, None, torch.float32, stop)
    generate = trainer._generate_single_turn
    monkeypatch.setattr(
        trainer,
        "_generate_single_turn",
        lambda ids, *rest: seen.extend(map(tokenizer.decode, ids)) or generate(ids, *rest),
    )
    trainer.train()
    assert len(seen) == 8 and set(seen) <= set(rows["rendered"]) and any("<tools>" in one for one in seen)
    assert any("reward" in row for row in trainer.state.log_history)


PAIRS_OF_REWARD = [{"prompt": f"Say {i}?", "chosen": f"Yes {i}, it is.", "rejected": f"No {i}."} for i in range(8)]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_scores_as_transformers_does(method, setting, workspace, model_folder, monkeypatch):
    _, _, tokenizer, trainer = setting(PAIRS_OF_REWARD, stage="rm", finetuning_type=method)
    trainer.train()
    run = list_runs(workspace)[0]
    trainer.save_model(str(run.path))
    config = validated({"model_name_or_path": str(model_folder), "dataset": "d", "stage": "grpo", "reward_funcs": "model",
                        "per_device_train_batch_size": 4, "reward_model": run.id})  # fmt: skip
    scorer = answer_scores(config, workspace, torch.float32, lambda *_: None, lambda line: None)
    questions = [f"Say {i}?" * (1 + i % 3) for i in range(6)]
    answers = [
        [{"role": "assistant", "content": text}] for text in ("Yes 1, it is.", "No.", "", "<|im_end|>x", "a b c", "7")
    ]
    given = [json.dumps({"messages": [{"role": "user", "content": q}], "tools": None}) for q in questions]
    monkeypatch.setitem(answer_scores_module.BUDGET, "cpu", 60)  # several passes, with padding in them
    found = scorer([None] * 6, answers, question=given, answer=[""] * 6)
    if method == "lora":
        base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
        plain = PeftModel.from_pretrained(base, run.path).eval()
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(run.path).eval()
    for question, answer, score in zip(questions, answers, found, strict=True):
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}, *answer], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():  # one row alone: transformers takes its last token
            wanted = plain(input_ids=ids).logits[0, 0]
        assert score == pytest.approx(float(wanted), rel=1e-4, abs=1e-5)
    assert len({round(score, 4) for score in found}) > 3


def test_what_is_no_reward_model_is_told(workspace, model_folder, tmp_path):
    for name, code in ((str(model_folder), "reward_model_answers"), ("nothing-here", "reward_model_missing")):
        with pytest.raises(UserError) as caught:
            locate_reward_model(name, workspace)
        assert caught.value.message.code == code
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError) as caught:
        locate_reward_model(str(tmp_path / "odd"), workspace)
    assert caught.value.message.code == "reward_model_unreadable"
    two = tmp_path / "two"
    labels = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2)
    labels.save_pretrained(two)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(two)
    config = validated({"model_name_or_path": str(model_folder), "dataset": "d", "stage": "grpo", "reward_funcs": "model",
                        "per_device_train_batch_size": 4, "reward_model": str(two)})  # fmt: skip
    with pytest.raises(UserError) as caught:
        answer_scores(config, workspace, torch.float32, lambda *_: None, lambda line: None)
    assert caught.value.message.code == "reward_model_kind"
