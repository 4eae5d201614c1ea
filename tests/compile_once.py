#!/usr/bin/env python3
"""The C compiler of the tests: what it has compiled before from the same source with the same options is copied.

Every workspace compiles the kernels for the CPU (`workbench/models/cpu`), two seconds each; the tests have hundreds of
workspaces. `COMPILED` is the folder of what was compiled: a fresh one for each session of tests.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

arguments = sys.argv[1:]
compiler = os.environ["COMPILER"]
sources = [Path(word) for word in arguments if word.endswith(".c")]
if len(sources) != 1 or arguments.count("-o") != 1:
    os.execvp(compiler, [compiler, *arguments])
place = arguments.index("-o") + 1
target = Path(arguments[place])
key = repr([compiler, *arguments[:place], *arguments[place + 1 :]]).encode() + sources[0].read_bytes()
compiled = Path(os.environ["COMPILED"]) / hashlib.sha256(key).hexdigest()
if not compiled.exists():
    done = subprocess.run([compiler, *arguments])
    if done.returncode:
        sys.exit(done.returncode)
    partial = compiled.with_suffix(f".{os.getpid()}")
    shutil.copyfile(target, partial)
    partial.replace(compiled)
shutil.copyfile(compiled, target)
