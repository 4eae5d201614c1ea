"""The switch of a chat template in the engine: as loaded, and as a request has it; in training's own files, too."""

import shutil
from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import validated
from workbench.data.training_set import encoder_of, load_data
from workbench.engine.backend import Job, Sampling, Score
from workbench.engine.transformers_backend import TransformersDecoder
from workbench.errors import UserError
from workbench.storage.workspace import Workspace

ASK = [{"role": "user", "content": "Who are you?"}]
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
OPEN = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def qwen3(tiny_model, tmp_path_factory) -> Path:
    """A tiny model with Qwen3's chat template."""
    folder = tmp_path_factory.mktemp("qwen3") / "model"
    shutil.copytree(tiny_model, folder)
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    shutil.copy(template, folder / "chat_template.jinja")
    return folder


@pytest.mark.parametrize(("choice", "end"), [("auto", OPEN), ("on", OPEN), ("off", CLOSED)])
def test_the_engine_asks_as_it_was_loaded_or_as_a_request_says(qwen3, tmp_path, choice, end):
    config = validated({"model_name_or_path": str(qwen3), "enable_thinking": choice}, EngineConfig)
    decoder = TransformersDecoder(config, Workspace(tmp_path).create(), lambda *_: None, lambda *_: None)

    def prompt(**values) -> str:
        job = Job(None, ASK, Sampling(max_tokens=1), template_values=values)
        list(decoder.open(job))
        return job.prompt_text

    assert prompt().endswith(f"<|im_end|>\n{end}")
    assert prompt(enable_thinking=False).endswith(CLOSED)
    assert prompt(enable_thinking=True).endswith(f"<|im_end|>\n{OPEN}")
    as_loaded, thinking = (
        decoder.score(Score(None, ASK, "I am.", 0, values)) for values in ({}, {"enable_thinking": True})
    )
    assert (as_loaded[0].logprob == thinking[0].logprob) == (choice != "off")


def test_tools_need_a_template_that_knows_them(tiny_model, tmp_path):
    def prompt(template: str) -> str:
        config = validated({"model_name_or_path": str(tiny_model), "template": template}, EngineConfig)
        decoder = TransformersDecoder(config, Workspace(tmp_path).create(), lambda *_: None, lambda *_: None)
        job = Job(None, ASK, Sampling(max_tokens=1), tools=[{"type": "function", "function": {"name": "weather"}}])
        list(decoder.open(job))
        return job.prompt_text

    assert '{"name": "weather"}' in prompt("chatml")
    with pytest.raises(UserError, match="no place for tools"):
        prompt("deepseek")


def test_a_run_says_what_is_trained_and_its_tokenizer_keeps_the_choice(qwen3, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 2)
    said: list[str] = []
    tokenizers = {}
    for choice in ("auto", "off"):
        tokenizer = tokenizers[choice] = AutoTokenizer.from_pretrained(qwen3)
        config = validated(
            {"model_name_or_path": str(qwen3), "dataset": str(data / "d.jsonl"), "enable_thinking": choice}, RunConfig
        )
        said.clear()
        load_data(config, Workspace(tmp_path / "w").create(), tokenizer, lambda *_: None, log=said.append)
        empty = [line for line in said if "an empty thought" in line]
        assert bool(empty) == (choice == "auto") and all("2 rows of 2" in line for line in empty)
    tokenizers["off"].save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True).endswith(CLOSED)


def test_a_switch_that_a_template_does_not_have_is_named(tiny_model, tmp_path):
    tokenizer, said = AutoTokenizer.from_pretrained(tiny_model), []
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    config = validated(
        {
            "model_name_or_path": str(tiny_model),
            "dataset": str(tmp_path / "d.jsonl"),
            "template": "chatml",
            "enable_thinking": "off",
        },
        RunConfig,
    )
    load_data(config, Workspace(tmp_path / "w").create(), tokenizer, lambda *_: None, log=said.append)
    assert any("has no such switch" in line for line in said)
    assert encoder_of(config, tokenizer).encode([*ASK, {"role": "assistant", "content": "I."}]).text.count("think") == 0
