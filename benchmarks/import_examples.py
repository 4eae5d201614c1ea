"""How many run configs of another tool's folder are imported without loss.

`python benchmarks/import_examples.py FOLDER` reads every `.yaml` and `.sh` below it. *whole*: everything is taken over,
or changes nothing. *in part*: some keys are not taken over, and are listed. *refused*: one sentence. *another run*: a
file that becomes another kind of run than it says; there should be none. *part of a run*: a file that says only where a
run computes (a config of accelerate), or its special tokens, and is taken over whole.
"""

import argparse
import collections
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.cli.imports import named_file
from workbench.config.llamafactory import import_text
from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import validated
from workbench.data import templates
from workbench.errors import UserError

PART = {"devices", "bf16", "fp16", "gradient_accumulation_steps", "max_grad_norm", "add_special_tokens"}


def kind_of(text: str) -> str:
    """What a YAML file says that it is: its stage and method, `other` for one that does not train."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    if not isinstance(values, dict):
        return ""
    if "model" in values:  # the form of v1
        peft = values.get("peft_config") or {}
        if "export_dir" in peft or "train_dataset" not in values:
            return "export" if "export_dir" in peft else "chat"
        stage = "dpo" if "dpo" in values["train_dataset"] else "sft"
        return f"{'rm' if values.get('model_class') == 'cls' else stage} {peft.get('name', 'full')}"
    if not values.get("do_train") and not values.get("do_predict"):
        return "export" if "export_dir" in values else "chat" if "template" in values else "other"
    return f"{values.get('stage', 'sft')} {values.get('finetuning_type', 'lora')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    counts = collections.Counter()
    for file in sorted(file for file in folder.rglob("*") if file.suffix in (".yaml", ".yml", ".sh")):
        text = file.read_text(encoding="utf-8")
        try:
            imported = import_text(text, lambda name, file=file: named_file(name, str(file)))
            trains = imported.purpose == "train"
            part = trains and imported.values.keys() <= PART
            if part:
                imported.values |= {"model_name_or_path": "a/model", "dataset": "rows"}
            config = validated(imported.defaults | imported.values, RunConfig if trains else EngineConfig)
            templates.read(config.template)
        except UserError as error:
            result, why = "refused", str(error)
        else:
            result, why = ("in part", ", ".join(imported.lost)) if imported.lost else ("whole", "")
            became = f"{config.stage} {config.finetuning_type}" if trains else imported.purpose
            said = kind_of(text)
            if part:
                result, why = (
                    (result, why)
                    if imported.lost
                    else ("part of a run", ", ".join(sorted(PART & imported.values.keys())))
                )
            elif file.suffix != ".sh" and said and said != became:
                result, why = "another run", f"{said} became {became}"
        counts[result] += 1
        print(f"{result:13} {file.relative_to(folder)}  {why.splitlines()[0][:150] if why else ''}")
    print(dict(counts))
    return int(counts["another run"] > 0)


if __name__ == "__main__":
    sys.exit(main())
