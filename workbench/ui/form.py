"""The form of a run: one widget per option, made from the options' definition."""

from collections.abc import Sequence

import gradio as gr

from workbench.config.fields import Option, options
from workbench.config.option import split_names
from workbench.config.options import GROUPS, RunConfig
from workbench.config.run_config import validated
from workbench.data.registry import registries
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.locate import CATALOGUE, adapter_choices
from workbench.runs.run import list_runs
from workbench.storage.workspace import Workspace, dataset_folder
from workbench.ui.strings import t

_HIDDEN = {"resume_from_checkpoint"}  # set elsewhere


def model_choices(workspace: Workspace) -> list[str]:
    """Models for a list: the catalogue, those in the workspace, and runs that trained a whole model."""
    runs = [run.id for run in list_runs(workspace) if run.has_model]
    return list(dict.fromkeys([*CATALOGUE, *workspace.model_folders(), *runs]))


def dataset_choices(workspace: Workspace, folder: str = "data") -> tuple[list[str], list[str]]:
    """`(readable names, 'name: why not' of the others as messages)` in a dataset folder and in the workspace."""
    try:
        datasets = registries(dataset_folder(folder, workspace), workspace).values()
    except UserError as error:
        return [], [error.message]
    names = [d.name for d in sorted(datasets, key=by_length) if not d.problem]
    return names, [Message("at_place", place=d.name, problem=d.problem) for d in datasets if d.problem]


def by_length(info) -> tuple[int, str]:
    """Shorter names first: gradio's list takes the first entry that contains what was typed, and a whole name should be
    itself."""
    return len(info.name), info.name


class Form:
    """The widgets, in the order of `names`; `values` turns what they hold into options and back."""

    def __init__(self, workspace: Workspace, start: dict):
        self.workspace = workspace
        self.options = [o for o in options(RunConfig) if o.name not in _HIDDEN]
        self.names = [o.name for o in self.options]
        self.widgets: dict[str, gr.components.Component] = {}
        self.groups: dict[str, gr.Accordion] = {}
        self._start = start

    def build(self) -> None:
        """Basic options in rows, the rest in one accordion per group."""
        basic = [o for o in self.options if o.basic]
        for index in range(0, len(basic), 3):
            with gr.Row(equal_height=True):
                for option in basic[index : index + 3]:
                    self._widget(option)
        for group in GROUPS:
            rest = [o for o in self.options if o.group == group and not o.basic]
            if rest:
                with gr.Accordion(t(f"more_{group}"), open=False, elem_id=f"group-{group}") as self.groups[group]:
                    for index in range(0, len(rest), 3):
                        with gr.Row(equal_height=True):
                            for option in rest[index : index + 3]:
                                self._widget(option)

    def _widget(self, option: Option) -> None:
        common = {
            "label": t(f"opt_{option.name}"),
            "info": t(f"help_{option.name}"),
            "elem_id": f"opt-{option.name}",
            "value": self.shown(option, self._start.get(option.name, option.default)),
            "min_width": 200,
            "interactive": True,
        }
        if option.name == "dataset":
            widget = gr.Dropdown(
                dataset_choices(self.workspace)[0], multiselect=True, allow_custom_value=True, **common
            )
        elif option.name == "model_name_or_path":
            widget = gr.Dropdown(model_choices(self.workspace), allow_custom_value=True, **common)
        elif option.name == "adapter_name_or_path":
            widget = gr.Dropdown(["", *adapter_choices(list_runs(self.workspace))], allow_custom_value=True, **common)
        elif option.name == "trust_remote_code" and not self.workspace.remote_code:
            widget = gr.Checkbox(**common | {"info": t("remote_code_off"), "interactive": False})
        elif option.kind == "bool":
            widget = gr.Checkbox(**common)
        elif option.kind == "choice":
            empty = [("–", "")] if option.optional else []
            widget = gr.Dropdown(empty + [(str(c), c) for c in option.choices], **common)
        elif option.name == "sample_prompts":
            widget = gr.Textbox(lines=2, max_lines=6, **common)
        else:  # numbers too: a text field shows 1e-4 as it was written and may be empty
            widget = gr.Textbox(max_lines=1, **common)
        self.widgets[option.name] = widget

    @property
    def components(self) -> list:
        return [self.widgets[name] for name in self.names]

    @property
    def searched(self) -> list:
        """What `found` updates: the groups, then the widgets."""
        return [*self.groups.values(), *self.components]

    def found(self, words: str) -> tuple[int, list]:
        """`(number of options, updates of searched)`: only options that have all of `words` in their name, labels or
        explanations, in either language. No words: all of them, with the groups closed."""
        terms = words.lower().split()
        hits = [all(term in _search_text(option) for term in terms) for option in self.options]
        groups = {option.group for option, hit in zip(self.options, hits, strict=True) if hit and not option.basic}
        updates = [gr.update(open=bool(terms) and group in groups, visible=group in groups) for group in self.groups]
        return sum(hits), [*updates, *(gr.update(visible=hit) for hit in hits)]

    @staticmethod
    def shown(option: Option, value):
        """An option's value as its widget shows it."""
        if option.name == "dataset":
            listed = value if isinstance(value, list) else [] if value is None else [value]
            return split_names(",".join(map(str, listed)))
        if option.kind == "bool":
            return bool(value)
        if value is None:
            return ""
        if option.kind == "choice":
            return value
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    def fill(self, values: dict) -> list:
        """What all widgets should show for `values` (others get their default)."""
        return [self.shown(o, values.get(o.name, o.default)) for o in self.options]

    def change(self, values: dict, contents: Sequence) -> list:
        """`fill` for widgets that show `contents`: one that shows the right thing already is left alone, so that what
        the user types into it before the answer comes stays."""
        filled = self.fill(values)
        return [gr.skip() if new == old else new for new, old in zip(filled, contents, strict=True)]

    def read(self, contents: list) -> dict:
        """The options that differ from their defaults. Nothing is checked yet."""
        values = {}
        for option, content in zip(self.options, contents, strict=True):
            if isinstance(content, list):
                content = ",".join(content)
            if content is None or (isinstance(content, str) and content.strip() == ""):
                continue
            if option.kind in ("int", "float"):
                content = _number(content)
            if content != option.default:
                values[option.name] = content
        return values

    def config(self, contents: list) -> RunConfig:
        """A checked config. Raises UserError with one line per problem."""
        return validated(self.read(contents))


def _search_text(option: Option) -> str:
    return " ".join([option.name, option.name.replace("_", " "), *option.labels, *option.helps]).lower()


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text  # left as it is, so that the check can say what is wrong with it
