"""Rewards by rule, and those of a file: what an answer is worth, worked out by hand."""

import pytest

from workbench.config.conflicts import conflicts
from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.storage.workspace import Workspace
from workbench.train.rewards import answer_matches, reward_functions, short_enough, valid_json


def config(**values) -> RunConfig:
    given = {"model_name_or_path": "m", "dataset": "d", "stage": "grpo", "per_device_train_batch_size": 4}
    return RunConfig(**given | values)


@pytest.mark.parametrize(
    ("text", "answer", "worth"),
    [
        ("Paris", "paris ", 1),
        ("It is Paris", "Paris", 0),
        ("She has 3 + 4 = 7 apples.", "3 and 4 make seven #### 7", 1),
        ("That is 1,200.0", "#### 1200", 1),
        ("7, or rather 8", "#### 7", 0),
        ("", "#### 7", 0),
        ("no number", "no 7 in it.", 0),
        ("-5", "-5", 1),
    ],
)
def test_an_answer_is_the_datasets_in_words_or_in_its_last_number(text, answer, worth):
    assert answer_matches([[{"role": "assistant", "content": text}]], [answer]) == [worth]


def test_json_and_length():
    texts = ['{"a": 1}', "[1, 2]", "```json\n{}\n```", "7", '{"a": 1} and more', "[" * 100_000, ""]
    assert valid_json(texts) == [1, 1, 1, 0, 0, 0, 0]
    assert short_enough(10)(["x" * 10, "x" * 15, "x" * 20, "x" * 99, ""]) == [1, 0.5, 0, 0, 1]


def test_a_pattern_that_never_ends_is_no_match():
    (matches,) = reward_functions(config(reward_funcs="regex", reward_regex=r"(a|aa)+$"))
    assert matches(["aaa", "b", "a" * 10_000 + "b"]) == [1, 0, 0]
    with pytest.raises(UserError) as error:
        reward_functions(config(reward_funcs="regex", reward_regex="("))
    assert error.value.message.code == "reward_pattern"


FILE = "def reward(prompts, completions, answer, **columns):\n    return [len(text) for text in completions]\n"


def test_a_file_rewards_only_where_it_is_trusted(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    values = {"reward_funcs": "file", "reward_file": str(file)}
    assert [problem.code for problem in conflicts(config(**values))] == ["reward_untrusted"]
    with pytest.raises(UserError):
        reward_functions(config(**values))
    (mine,) = reward_functions(config(**values, trust_reward_code=True))
    assert mine([[]] * 2, ["ab", "abc"], answer=["", ""]) == [2, 3]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("def reward(prompts, completions, **columns):\n    return 1 / 0\n", "reward_failed", "line 2"),
        ("def reward(prompts, completions, **columns):\n    return [1.0]\n", "reward_values", "2 finite numbers"),
        ("def reward(prompts, completions, **columns):\n    return [1.0, float('nan')]\n", "reward_values", "none"),
        ("def other():\n    pass\n", "reward_file_without", "no function reward"),
        ("def reward(:\n", "reward_failed", "line 1"),
        (None, "reward_file_missing", "not there"),
    ],
)
def test_a_file_that_fails_is_one_sentence(text, code, words, tmp_path):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as error:
        (mine,) = reward_functions(config(reward_funcs="file", reward_file=str(file), trust_reward_code=True))
        mine([[]] * 2, ["ab", "abc"], answer=["", ""])
    assert error.value.message.code == code and words in str(error.value)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"reward_funcs": "wit"}, "reward_unknown_rule"),
        ({"reward_funcs": ","}, "reward_unknown_rule"),
        ({"num_generations": 3}, "generations_batch"),
        ({"reward_funcs": "regex"}, "reward_needs"),
        ({"reward_funcs": "file"}, "reward_needs"),
        ({"reward_weights": "1,2"}, "reward_weights_wrong"),
        ({"reward_weights": "x"}, "reward_weights_wrong"),
    ],
)
def test_rewards_that_cannot_be(values, code):
    assert code in [problem.code for problem in conflicts(config(**values))]
    assert not conflicts(config(**values, stage="sft"))


def test_a_page_runs_no_reward_file_unless_its_server_allows_code(tmp_path):
    file = tmp_path / "w" / "mine.py"
    file.parent.mkdir()
    file.write_text(FILE)
    asked = config(reward_funcs="file", reward_file=str(file), trust_reward_code=True, dataset_dir=str(tmp_path / "w"))
    asked = asked.model_copy(update={"model_name_or_path": "SmolLM2-135M-Instruct"})
    with pytest.raises(UserError) as error:
        Workspace(tmp_path / "w", confined=True).confine(asked)
    assert error.value.message.code == "remote_code_off"
    Workspace(tmp_path / "w", confined=True, remote_code=True).confine(asked)
    outside = asked.model_copy(update={"reward_file": "/etc/passwd"})
    with pytest.raises(UserError) as error:
        Workspace(tmp_path / "w", confined=True, remote_code=True).confine(outside)
    assert "outside" in error.value.message.code
