"""Slurm as the workbench sees it: `sbatch`, `squeue`, `scancel` and `sacct` that keep jobs in a folder and really run
batch files. `install` puts them on a PATH; with a file `hold` in the folder jobs wait until `begin`."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "squeue", "scancel", "sacct", "scontrol")


def install(folder: Path) -> dict[str, str]:
    """Environment in which these programs are Slurm."""
    (folder / "bin").mkdir(parents=True)
    for name in NAMES:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def job_of(folder: Path, number) -> dict:
    return json.loads((folder / f"{number}.json").read_text())


def write_job(folder: Path, job: dict) -> None:
    temporary = folder / f".{job['id']}.{os.getpid()}"
    temporary.write_text(json.dumps(job))
    os.replace(temporary, folder / f"{job['id']}.json")


def options_of(file: str) -> dict[str, str]:
    """The #SBATCH lines, split as sbatch splits them."""
    given = {}
    for line in Path(file).read_text().splitlines()[1:]:
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            for word in shlex.split(line.removeprefix("#SBATCH ")):
                name, _, value = word.removeprefix("--").partition("=")
                given[name] = value
    return given


def begin(folder: Path, number) -> None:
    """Run the batch file of a job; its end is written by a process that waits for it."""
    subprocess.Popen(
        [sys.executable, __file__, "wait", str(number)],
        env=os.environ | {"FAKE_SLURM": str(folder)}, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _wait(folder: Path, number: str) -> None:
    job = job_of(folder, number)
    log = job["options"]["output"].replace("%j", number).replace("%%", "%")
    env = {k: v for k, v in os.environ.items() if k != "FAKE_SLURM"} | {"SLURM_JOB_ID": number}
    env |= {"WORKBENCH_HOST": "node1", "SLURM_JOB_NUM_NODES": job["options"]["nodes"]}
    with open(log, "ab") as out:
        process = subprocess.Popen(
            ["bash", job["file"]], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
        )
        write_job(folder, job | {"state": "RUNNING", "pid": process.pid})
        code = process.wait()
    write_job(folder, job_of(folder, number) | {"state": "COMPLETED" if code == 0 else "FAILED", "code": code})


def main(program: str, arguments: list[str]) -> int:
    if program == "scontrol":  # show hostnames: of this job
        print("\n".join(["127.0.0.1", "node2", "node3"][: int(os.environ["SLURM_JOB_NUM_NODES"])]))
        return 0
    folder = Path(os.environ["FAKE_SLURM"])
    if program == "wait":
        _wait(folder, arguments[0])
    elif program == "sbatch":
        options = options_of(arguments[-1])
        if options.get("partition") == "nowhere":
            print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
            print("sbatch: error: Batch job submission failed: Invalid partition name specified", file=sys.stderr)
            return 1
        number = str(101 + len(list(folder.glob("*.json"))))
        write_job(folder, {"id": number, "state": "PENDING", "file": arguments[-1], "options": options})
        print(f"{number};cluster")
        if not (folder / "hold").exists():
            begin(folder, number)
    elif program == "squeue":
        if (folder / "down").exists():
            print("slurm_load_jobs error: Unable to contact slurm controller", file=sys.stderr)
            return 1
        jobs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
        print("\n".join(job["id"] for job in jobs if job["state"] in ("PENDING", "RUNNING")))
    elif program == "sacct":
        if (folder / "no-accounting").exists():
            print("Slurm accounting storage is disabled", file=sys.stderr)
            return 1
        job = job_of(folder, arguments[-1])
        print(f"{job['state']}|{job.get('code', 0)}:0")
    elif program == "scancel":
        job = job_of(folder, arguments[-1])
        if job.get("pid"):
            os.killpg(job["pid"], signal.SIGTERM)
        write_job(folder, job | {"state": "CANCELLED by 0"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
