import json
import os
import threading

import pytest

from workbench.config.run_config import validated
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.locate import locate_adapter
from workbench.runs.run import Run, create_run, delete_run, find_run, list_runs, run_named, write_manifest
from workbench.runs.state import own_process, process_alive

CONFIG = {"model_name_or_path": "a/b", "dataset": "d"}


def test_run_directory_and_config(workspace):
    run = create_run(workspace, validated(CONFIG | {"lora_rank": 8, "run_name": "my run"}))
    assert run.path.parent == workspace.runs and run.id.endswith("-my-run")
    assert run.config_values() == CONFIG | {"lora_rank": 8, "run_name": "my run"}
    assert run.state().state == "queued"
    assert list_runs(workspace) == [run] and find_run(workspace, run.id[:8]) == run


def test_runs_started_in_the_same_second_get_their_own_directories(workspace):
    made, config = [], validated(CONFIG)
    threads = [threading.Thread(target=lambda: made.append(create_run(workspace, config))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.id for run in made}) == 12


def test_output_dir_is_the_run_directory_and_is_not_shared(workspace):
    config = validated(CONFIG | {"output_dir": "saves/x"})
    run = create_run(workspace, config)
    assert run.path.resolve() == workspace.root / "saves" / "x"
    run.update(state="running", **own_process())
    with pytest.raises(UserError, match="still going"):
        create_run(workspace, config)
    run.update(state="finished")
    with pytest.raises(UserError, match="already holds a run"):
        create_run(workspace, config)
    (run.path / "checkpoint-5").mkdir()
    create_run(workspace, validated(CONFIG | {"output_dir": "saves/x", "overwrite_output_dir": True}))
    assert not (run.path / "checkpoint-5").exists()


def test_output_dir_from_the_page_stays_inside(workspace, tmp_path):
    for outside in ("../out", str(tmp_path / "elsewhere"), "a/../../out", ".", "models/x", "runs/y"):
        with pytest.raises(UserError, match=r"outside the workspace|belongs to the workspace"):
            create_run(workspace, validated(CONFIG | {"output_dir": outside}), confined=True)
    assert list_runs(workspace) == []


def test_each_of_several_adapters_from_the_page_is_confined(workspace, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for names in (f"some-run,{outside}", f"{outside}, some-run", "some-run,../x", f"a,b,{outside}/c"):
        with pytest.raises(UserError, match="adapter_name_or_path"):
            workspace.confine(validated(CONFIG | {"adapter_name_or_path": names}))
    workspace.confine(validated(CONFIG | {"adapter_name_or_path": "some-run,other-run/checkpoint-2"}))


def test_paths_from_the_page_are_confined(workspace, tmp_path):
    (tmp_path / "secret").mkdir()
    (workspace.root / "link").symlink_to(tmp_path / "secret")
    for values in (
        {"dataset_dir": str(tmp_path / "secret")},
        {"model_name_or_path": str(tmp_path / "secret")},
        {"adapter_name_or_path": "../secret"},
        {"dataset_dir": str(workspace.root / "link")},
        {"new_special_tokens_config": str(tmp_path / "secret" / "tokens.yaml")},
        {"new_special_tokens_config": "README.md"},  # of the folder that the server was started in
    ):
        with pytest.raises(UserError, match="outside the workspace"):
            workspace.confine(validated(CONFIG | values))
    workspace.confine(validated(CONFIG))


ODD = [
    {"state": "bogus"}, {"state": 5}, {"state": ["a"]}, {"pid": "abc"}, {"pid": -1}, {"pid_started": "x"}, {"progress": "x"},
    {"total_steps": "x"}, {"device": None}, {"reason": 5},
]  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00", '{"state": ', *map(json.dumps, ODD)])
def test_corrupt_state_reads_as_lost(workspace, text):
    run = create_run(workspace, validated(CONFIG))
    (run.path / "state.json").write_text(text)
    assert run.state().state == "lost"


def test_a_run_whose_process_is_gone_is_lost(workspace):
    run = create_run(workspace, validated(CONFIG))
    run.update(state="running", **own_process())
    assert run.state().state == "running"
    run.update(pid_started=own_process()["pid_started"] - 100)  # the pid belongs to another process now
    assert run.state().state == "lost"
    assert not process_alive(os.getpid(), 1.0)


def test_unknown_keys_in_state_are_ignored(workspace):
    run = create_run(workspace, validated(CONFIG))
    stored = json.loads((run.path / "state.json").read_text()) | {"from_the_future": 1}
    (run.path / "state.json").write_text(json.dumps(stored))
    assert run.state().state == "queued"


def test_only_whole_checkpoints_count(tmp_path):
    for name, files in {
        "checkpoint-10": ["trainer_state.json", "adapter_model.safetensors"],
        "checkpoint-9": ["trainer_state.json", "adapter_model.safetensors"],
        "checkpoint-20": ["adapter_model.safetensors"],
        "checkpoint-x": ["trainer_state.json"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    assert [p.name for p in Run(tmp_path).checkpoints()] == ["checkpoint-9", "checkpoint-10"]


@pytest.mark.parametrize("damage", ["missing", "cut", "list"])
def test_a_checkpoint_with_a_file_missing_or_cut_is_not_whole(tmp_path, damage):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_bytes(b"x" * 100)
    write_manifest(folder)
    assert Run(tmp_path).checkpoints() == [folder]
    if damage == "missing":
        (folder / "optimizer.pt").unlink()
    elif damage == "cut":
        (folder / "optimizer.pt").write_bytes(b"x" * 60)
    else:
        (folder / "files.json").write_text("{")
    assert Run(tmp_path).checkpoints() == []


def test_delete_refuses_a_run_that_has_not_ended_and_takes_linked_folders_along(workspace):
    run = create_run(workspace, validated(CONFIG | {"output_dir": "saves/x"}))
    with pytest.raises(UserError, match="has not ended"):
        delete_run(run)
    run.update(state="finished")
    lock = run.lock()
    with pytest.raises(UserError, match="has not ended"):  # a trainer is still there
        delete_run(run)
    os.close(lock)
    delete_run(run)
    assert list_runs(workspace) == [] and not (workspace.root / "saves" / "x").exists()


@pytest.mark.parametrize("name", ["..", ".", "/", "", None, "../runs", "a/b", ".hidden", "/etc", "\0"])
def test_a_run_from_the_browser_is_a_name_and_nothing_else(workspace, name):
    (workspace.runs / ".hidden").mkdir()
    (workspace.runs / "a" / "b").mkdir(parents=True)
    assert run_named(workspace, name) is None
    with pytest.raises(UserError, match="holds no run"):
        delete_run(Run(workspace.runs / ".."))
    assert run_named(workspace, "a") == Run(workspace.runs / "a")


def test_an_adapter_named_by_a_run_is_the_runs_own(workspace, tmp_path):
    run = create_run(workspace, validated(CONFIG))
    outside = tmp_path / "outside"
    for folder in (outside, run.path / "checkpoint-3"):
        folder.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).touch()
    assert locate_adapter(f"{run.id}/checkpoint-3", workspace) == run.path / "checkpoint-3"
    for name in (f"{run.id}/{outside}", f"{run.id}/../../../outside", f"{run.id}//{outside}"):
        with pytest.raises(UserError, match="holds no adapter"):
            locate_adapter(name, workspace)


def test_output_folders_do_not_share_files(workspace):
    inner = create_run(workspace, validated(CONFIG | {"output_dir": "saves/a"}))
    (workspace.root / "saves" / "mine.txt").write_text("keep")
    for other in ("saves", "saves/a/b"):
        with pytest.raises(UserError, match="would share files"):
            create_run(workspace, validated(CONFIG | {"output_dir": other, "overwrite_output_dir": True}))
    inner.update(state="finished", ended=1.0)
    (inner.path / "own.txt").write_text("keep")
    again = create_run(workspace, validated(CONFIG | {"output_dir": "saves/a", "overwrite_output_dir": True}))
    assert [run.id for run in list_runs(workspace)] == [again.id]  # one folder is one run
    again.update(state="finished", ended=1.0)
    delete_run(again)
    assert (workspace.root / "saves" / "a" / "own.txt").exists() and list_runs(workspace) == []
    assert not (workspace.root / "saves" / "a" / "state.json").exists()


def test_notes(workspace):
    run = create_run(workspace, validated(CONFIG))
    assert run.notes() == {}
    run.set_notes(title="名称 <b>", parent="p")
    run.set_notes(note="n")
    assert run.notes() == {"title": "名称 <b>", "parent": "p", "note": "n"}
    (run.path / "meta.json").write_text("[1]")
    assert run.notes() == {}


def test_a_full_disk_leaves_room_for_the_last_word(workspace, monkeypatch):
    from workbench.runs import state as module

    run = create_run(workspace, validated(CONFIG))
    real = module.write_atomically

    def full(path, text):
        if (run.path / ".reserve").exists():
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(module, "write_atomically", full)
    run.update(state="failed", reason="The disk is full.")
    assert run.state().reason == "The disk is full."


def test_find_run_says_what_exists(workspace):
    with pytest.raises(UserError, match="none yet"):
        find_run(workspace, "x")


def test_a_run_keeps_all_of_its_warnings(workspace):
    run = create_run(workspace, validated(CONFIG))
    padded = Message("rows_padded", why=Message("padded_neftune"))
    plain = Message("steps_plain", why=Message("padded_neftune"))
    for warning in (padded, plain, padded):
        run.warn(warning)
    kept = Run(run.path).state().warning
    assert kept.text("zh").splitlines() == [plain.text("zh"), padded.text("zh")]
    run.update(warning="")
    run.warn(plain)
    assert Run(run.path).state().warning == plain


def test_a_warning_within_others_keeps_its_code(workspace):
    run = create_run(workspace, validated(CONFIG))
    inner = Message("padded_ranks", why=Message("attention_kind", kind="flash"))
    run.warn(Message("steps_plain", why=inner))
    run.warn(shared := Message("weights_shared", gib=1.0, count=2, rate=1.0, seconds=1.0))
    run.warn(shared)
    assert Run(run.path).state().warning.text("zh").count("\n") == 1
