"""How many run configs of another tool's folder are imported without loss.

`python benchmarks/import_examples.py FOLDER` reads every `.yaml` and `.sh` below it. *whole*: everything is taken over,
or changes nothing. *in part*: some keys are not taken over, and are listed. *refused*: one sentence. *another run*: a
file that becomes another kind of run than it says; there should be none.
"""

import argparse
import collections
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.config import foreign
from workbench.config.llamafactory import import_text
from workbench.config.run_config import unused_key_reason, validated
from workbench.errors import UserError


def kind_of(text: str) -> str:
    """What a YAML file says that it is: its stage and method, `other` for one that does not train."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    if not isinstance(values, dict):
        return ""
    if not values.get("do_train"):
        return "other"
    return f"{values.get('stage', 'sft')} {values.get('finetuning_type', 'lora')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    counts = collections.Counter()
    for file in sorted(file for file in folder.rglob("*") if file.suffix in (".yaml", ".yml", ".sh")):
        text = file.read_text(encoding="utf-8")
        try:
            imported = import_text(text)
            config = validated(imported.defaults | imported.values)
        except UserError as error:
            result, why = "refused", str(error)
        else:
            lost = [key for key, _, why in imported.left_out if not (unused_key_reason(key) or foreign.harmless(key)
                                                                    or key in foreign.CHANGING)]  # fmt: skip
            result, why = ("in part", ", ".join(lost)) if lost else ("whole", "")
            said = kind_of(text)
            if file.suffix != ".sh" and said and said != f"{config.stage} {config.finetuning_type}":
                result, why = "another run", f"{said} became {config.stage} {config.finetuning_type}"
        counts[result] += 1
        print(f"{result:12} {file.relative_to(folder)}  {why.splitlines()[0][:150] if why else ''}")
    print(dict(counts))
    return int(counts["another run"] > 0)


if __name__ == "__main__":
    sys.exit(main())
