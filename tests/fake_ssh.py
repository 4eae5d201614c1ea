"""`ssh` (or `srun`) that runs the command on this machine under the name of the host. What a host is like is said by
files in a folder: `HOST.refuses`, `HOST.hangs`, `HOST.prelude` (shell that runs there first)."""

import os
import shlex
import sys
import time
from pathlib import Path


def install(folder: Path, name: str = "ssh") -> dict[str, str]:
    """Environment in which this program is `ssh`."""
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / name
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "FAKE_SSH": str(folder)}


def main(arguments: list[str]) -> None:
    folder = Path(os.environ["FAKE_SSH"])
    if arguments[0].startswith("--"):  # srun
        host = next(a.removeprefix("--nodelist=") for a in arguments if a.startswith("--nodelist="))
    else:
        assert "BatchMode=yes" in arguments and any(a.startswith("ConnectTimeout=") for a in arguments)
        host = arguments[-2]
    if (folder / f"{host}.refuses").exists():
        print(f"ssh: connect to host {host} port 22: No route to host", file=sys.stderr)
        sys.exit(255)
    (folder / f"{host}.pid").write_text(str(os.getpid()))
    if (folder / f"{host}.hangs").exists():
        time.sleep(600)
    prelude = folder / f"{host}.prelude"
    script = (prelude.read_text() if prelude.exists() else "echo Welcome to a cluster") + "\n" + arguments[-1]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FAKE", "PYTHON"))} | {"WORKBENCH_HOST": host}
    os.execvpe("bash", ["bash", "-c", script], env)


if __name__ == "__main__":
    main(sys.argv[1:])
