"""A chat template with generation markers: its own, or TRL's marked version of it.

TRL imports torch. A process that does without torch (one that only looks at data) asks a short-lived one:
`python -m workbench.corpus.marked`, a pickled tokenizer on stdin, JSON on stdout.
"""

import json
import os
import pickle
import re
import subprocess
import sys

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


def without_torch() -> None:
    """Let this process do without torch, which costs seconds and 200 MB: tokenizers and templates need none.

    Call it before transformers is imported.
    """
    if sys.modules.get("torch") is None:
        sys.modules["torch"] = None  # transformers then takes it for not installed
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def training_template(tokenizer) -> tuple[str, bool]:
    """`(template, whether it marks what the assistant wrote)` for a tokenizer with a template."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    if _MARKER.search(template):
        return template, True
    if "torch" in sys.modules and sys.modules["torch"] is None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-m", "workbench.corpus.marked"], input=pickle.dumps(tokenizer), capture_output=True, env=environment)  # fmt: skip
        marked = json.loads(done.stdout) if done.returncode == 0 and done.stdout else None
    else:
        marked = _trl(tokenizer)
    return (marked, True) if marked else (template, False)


def _trl(tokenizer) -> str | None:
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except Exception:  # no marked version is known for this template
        return None


if __name__ == "__main__":
    marked = _trl(pickle.load(sys.stdin.buffer))
    sys.stdout.write(json.dumps(marked))
