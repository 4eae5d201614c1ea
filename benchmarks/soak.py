"""Hundreds of tiny runs through the queue while stops, kills and restarts rain down; then the accounting.

    python benchmarks/soak.py FOLDER [--runs 200 --seed 0]

Runs are real trainer processes on a random model of a few thousand parameters. All the while: never two trainers of one
run, never two on one device, no step backwards in a log. In the end: every run in a final state that agrees with
what was done to it and with its files, and no process left. Exit code 1 if anything does not hold.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STEPS = 6


def trainers(workspace) -> list[tuple[str, psutil.Process]]:
    """`(run id, process)` of the trainers of this workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "workbench.train.main" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            path = Path(words[words.index("workbench.train.main") + 1])
            if path.parent == workspace.runs:
                found.append((path.name, process))
    return found


def start_page(workspace) -> subprocess.Popen:
    command = [sys.executable, "app.py", "--port", "0", "--workspace", str(workspace.root)]
    page = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    page.stdout.readline()
    return page


def main() -> int:
    from tests.tiny import make_tiny_data, make_tiny_model
    from workbench.config.run_config import validated
    from workbench.errors import UserError
    from workbench.runs.run import active_runs, create_run, list_runs
    from workbench.storage.workspace import Workspace
    from workbench.train import devices, queue

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    model, data = make_tiny_model(options.folder / "tiny-llama"), make_tiny_data(options.folder / "data")
    workspace = Workspace(options.folder / "workspace").create()
    config = validated(
        {
            "model_name_or_path": str(model),
            "dataset_dir": str(data),
            "dataset": "small",
            "cutoff_len": 64,
            "max_steps": STEPS,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "lora_rank": 4,
            "logging_steps": 1,
            "plot_loss": False,
            "quantization_bit": 4,
        }
    )
    page, made, actions, wrong = start_page(workspace), 0, collections.Counter(), []
    done_to = collections.defaultdict(set)  # run -> what was done to it
    began, last_word = time.monotonic(), 0.0

    def act(kind: str) -> None:
        nonlocal page
        going = [run for run in list_runs(workspace) if run.state().active]
        ended = [run for run in list_runs(workspace) if not run.state().active]
        alive = trainers(workspace)
        if kind == "stop" and going:
            run = chance.choice(going)
            queue.stop(run, workspace)
            done_to[run.id].add("stop")
        elif kind == "kill trainer" and alive:
            name, process = chance.choice(alive)
            process.kill()
            done_to[name].add("kill")
        elif kind == "kill supervisor" and alive:
            name, process = chance.choice(alive)
            supervisor = process.parent()
            if supervisor and "workbench" in " ".join(supervisor.cmdline()):
                supervisor.kill()
                done_to[name].add("orphan")
        elif kind == "resume" and ended:
            run = chance.choice(ended)
            try:
                queue.resume(run, workspace)
                done_to[run.id].clear()
            except UserError:
                return
        elif kind in ("kill page", "end page"):
            page.send_signal(signal.SIGKILL if kind == "kill page" else signal.SIGTERM)
            page.wait(20)
            page = start_page(workspace)
        else:
            return
        actions[kind] += 1

    kinds = ["stop", "kill trainer", "kill supervisor", "resume", "kill page", "end page"]
    while True:
        waiting = len(queue.queue(workspace))
        while made < options.runs and waiting < 3:
            create_run(workspace, config)
            made, waiting = made + 1, waiting + 1
        names = [name for name, _ in trainers(workspace)]
        if len(names) > len(devices.slots()):
            time.sleep(0.3)  # one may have been ending at that moment
            names = [name for name, _ in trainers(workspace)]
            if len(names) > len(devices.slots()):
                wrong.append(f"{len(names)} trainers at once: {names}")
        if made == options.runs and not active_runs(workspace) and not devices.busy_slots(workspace):
            break
        if made < options.runs and chance.random() < 0.25:
            act(chance.choices(kinds, [4, 3, 2, 2, 1, 1])[0])
        if time.monotonic() - last_word > 60:
            last_word = time.monotonic()
            states = collections.Counter(run.state().state for run in list_runs(workspace))
            print(f"{last_word - began:.0f} s: {made} made, {dict(states)}, {dict(actions)}", flush=True)
        time.sleep(0.5)
    page.terminate()
    page.wait(20)

    for run in list_runs(workspace):
        state, done = run.state(), done_to[run.id]
        lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
        steps = [json.loads(line)["current_steps"] for line in lines]
        checkpoints = [int(p.name.split("-")[1]) for p in run.checkpoints()]
        holds = {
            "finished": steps[-1:] == [STEPS] and run.has_adapter and STEPS in checkpoints,
            "stopped": bool(done & {"stop", "orphan"}) and bool(state.reason),
            "failed": "kill" in done and "killed" in state.reason,
            "lost": bool(done & {"orphan"}) and bool(state.reason),
        }
        if not holds.get(state.state):
            wrong.append(f"{run.id} is {state.state} ({state.reason}), done to it: {done}, steps {steps}")
        if steps != sorted(set(steps)):
            wrong.append(f"{run.id} has steps {steps}")
        if checkpoints and max(checkpoints) > (steps[-1] if steps else 0):
            wrong.append(f"{run.id} has a checkpoint at {max(checkpoints)}, but steps {steps}")
        if list(run.path.glob(".saving")) and state.state == "finished":
            wrong.append(f"{run.id} left a half checkpoint")
    left = [name for name, _ in trainers(workspace)]
    if left:
        wrong.append(f"processes left: {left}")
    states = collections.Counter(run.state().state for run in list_runs(workspace))
    print(
        f"{options.runs} runs in {time.monotonic() - began:.0f} s: {dict(states)}; {dict(actions)}; {len(wrong)} things"
        " do not hold"
    )
    print("\n".join(wrong))
    os.sync()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
