"""Branches of an answer, as plain data."""

import pytest

from workbench.chat import branches
from workbench.chat.session import Session, settled, shown, unshown


def entry(text, *others):
    top = [
        {"token": t, "bytes": list(t.encode()), "logprob": -1.0, "token_id": 7, "ends": t == "<end>"}
        for t in (text, *others)
    ]
    return {
        "token": text,
        "text": text,
        "logprob": -0.5,
        "bytes": list(text.encode()),
        "top_logprobs": top,
        "token_id": 5,
    }


def session() -> Session:
    talk = Session(width=2, models=["base", "tuned"])
    answer = {
        "role": "assistant",
        "content": "It is Rome.",
        "model": "base",
        "tokens": [entry("It"), entry(" is", "<end>"), entry(" Rome", " Paris"), entry(".")],
    }
    talk.columns[0] = [
        {"role": "user", "content": "Where?"},
        answer,
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes"},
    ]
    talk.columns[1] = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Paris"}]
    talk.focus = (0, 1)
    return talk


def test_going_on_from_another_token_keeps_the_old_answer_and_what_came_after_it():
    talk = session()
    branches.branch(talk, 2, 1)
    (question, new), other = talk.columns[0], talk.columns[1]
    assert (
        new["content"] == "It is Paris"
        and new["unfinished"]
        and len(new["tokens"]) == 3
        and new["tokens"][2]["rank"] == 2
    )
    assert (
        question["content"] == "Where?" and other[-1]["content"] == "Paris" and talk.width == 2
    )  # the other column stays
    new["content"] += ", no doubt."
    branches.settle(talk)
    assert branches.switch(talk, 0)
    assert [m["content"] for m in talk.columns[0]] == ["Where?", "It is Rome.", "Sure?", "Yes"]
    assert branches.switch(talk, 1) and talk.columns[0][-1]["content"] == "It is Paris, no doubt."
    assert not branches.switch(talk, 1) and not branches.switch(talk, 9)


def test_a_token_that_ends_the_answer_ends_it():
    talk = session()
    branches.branch(talk, 1, 1)
    assert (
        talk.columns[0][-1]["content"] == "It" and not talk.columns[0][-1]["unfinished"] and talk.completed == talk.turn
    )


@pytest.mark.parametrize("change", [{"external": True}, {"reasoning": "hm"}, {"calls": [{}]}])
def test_what_cannot_be_branched(change):
    talk = session()
    talk.columns[0][1] |= change
    with pytest.raises(branches.Impossible):
        branches.branch(talk, 2, 1)
    with pytest.raises(LookupError):
        branches.branch(session(), 9, 0)
    assert not branches.switch(talk, 0)


def test_an_answer_that_was_never_begun_is_dropped():
    talk = session()
    talk.columns[1].append({"role": "assistant", "content": ""})
    talk.next_turn(talk.columns)
    assert talk.columns[1][-1]["content"] == "Paris" and len(talk.columns) == 4
    assert settled([{"role": "user", "content": ""}]) == [{"role": "user", "content": ""}] and settled([]) == []


@pytest.mark.parametrize("text", ["is a < b & c?", "`a < b` and &lt;", "```\n<x>\n``` <y>"])
def test_an_edited_question_is_what_was_typed(text):
    assert unshown(shown(text)) == text
