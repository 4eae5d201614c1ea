"""The commands that look closer at answers, on a tiny model: what they print is what the functions under them say."""

import json
import math

import pytest
from typer.testing import CliRunner

from workbench.cli.main import app
from workbench.errors import UserError

pytestmark = pytest.mark.process
RUNNER = CliRunner()


def run(*arguments, code: int = 0):
    done = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_consistency(tiny_model, workspace):
    where = ["--workspace", workspace.root, "--max-tokens", 12]
    found = json.loads(run("consistency", tiny_model, "Who are you?", "--samples", 3, "--json", *where))
    assert len(found["samples"]) == 3
    assert "".join(sentence["text"] for sentence in found["sentences"]) == found["answer"]
    again = json.loads(run("consistency", tiny_model, "Who are you?", "--samples", 3, "--json", *where))
    assert again == found
    assert "samples, which say" in run("consistency", tiny_model, "Who are you?", "--samples", 3, *where)


def test_difference_has_the_base_models_own_probabilities(tiny_model, adapter, workspace):
    from workbench.config.options import EngineConfig
    from workbench.engine.backend import Job, Sampling
    from workbench.engine.transformers_backend import TransformersDecoder

    where = ["--workspace", workspace.root, "--max-tokens", 6]
    found = json.loads(run("difference", tiny_model, "Who are you?", "--adapter", adapter, "--json", *where))
    decoder = TransformersDecoder(EngineConfig(model_name_or_path=str(tiny_model)), workspace, lambda *_: None, print)
    job = Job(None, [{"role": "user", "content": "Who are you?"}], Sampling(1, 0.0, logprobs=5))
    (first,) = [info for token in decoder.open(job) for info in token.infos]
    known = {id_: math.exp(logprob) for id_, _, logprob, _ in first.top}
    assert 1 <= len(found["tokens"]) <= 6
    assert all(0 <= row[side] <= 1 for row in found["tokens"] for side in ("adapter", "base"))
    assert found["tokens"][0]["base"] <= max(known.values()) + 1e-6
    assert any(abs(row["adapter"] - row["base"]) > 1e-3 for row in found["tokens"])
    assert run("difference", tiny_model, "Who are you?", "--adapter", adapter, *where).startswith(
        "adapter   base  token"
    )


def test_contradiction_reads_wordings_from_a_file(tiny_model, workspace, tmp_path):
    file = tmp_path / "wordings.txt"
    file.write_text("Can you fly?\n!Are you unable to fly?\n")
    arguments = ["contradiction", tiny_model, "-", "--wordings", file, "--max-tokens", 4, "--workspace", workspace.root]
    done = RUNNER.invoke(app, [str(a) for a in [*arguments, "--json"]])
    rows = json.loads(done.stdout)
    assert [(row["question"], row["opposite"]) for row in rows] == [
        ("Can you fly?", False),
        ("Are you unable to fly?", True),
    ]
    assert done.exit_code == (2 if any(row["contradicts"] for row in rows) else 0)
    missing = RUNNER.invoke(
        app,
        [
            "contradiction",
            str(tiny_model),
            "-",
            "--wordings",
            str(tmp_path / "nope"),
            "--workspace",
            str(workspace.root),
        ],
    )
    assert isinstance(missing.exception, UserError) and "cannot be read" in str(missing.exception)


def test_corrections(workspace):
    where = ["--workspace", workspace.root]
    assert run("corrections", "list", *where) == ""
    said = run(
        "corrections", "add", "Can you call tools?", "--right", "No.", "--wrong", "Yes, I can.", "--model", "m", *where
    )
    assert said == "1 corrections. Train on them with dataset: corrections.\n"
    (row,) = [json.loads(line) for line in run("corrections", "list", "--json", *where).splitlines()]
    assert [message["content"] for message in row["messages"]] == ["Can you call tools?", "No."]
    assert run("corrections", "list", *where) == "Can you call tools? → No.\n"
