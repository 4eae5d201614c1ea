"""The Train tab's fold for sweeps: which options vary, how many runs that is and how long they take, queue them."""

import gradio as gr

from workbench.config.options import RunConfig
from workbench.config.sweep import MOST, changes_of, members, words
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.runs.run import Run, group_name
from workbench.storage.workspace import Workspace
from workbench.train import sweep
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.notes import QUIET, note, told
from workbench.ui.strings import language, t
from workbench.ui.tabs.data.shared import user_of

_SHOWN = 8  # runs that are named before they are queued


class SweepPanel:
    """Its widgets; `config_of` makes a config of the form's contents."""

    def __init__(self, workspace: Workspace, worker: DataWorker, config_of):
        self.workspace, self.worker, self.config_of = workspace, worker, config_of

    def build(self) -> None:
        """Lay the fold out."""
        with gr.Accordion(t("sweep_title"), open=False, elem_id="sweep"):
            self.kind = gr.Radio(
                [(t("sweep_grid"), "grid"), (t("sweep_random"), "random")],
                value="grid",
                label=t("sweep_kind"),
                elem_id="sweep-kind",
            )
            self.lines = gr.Textbox(
                label=t("sweep_lines"),
                info=t("sweep_lines_info"),
                placeholder="learning_rate = 1e-4, 2e-4\nlora_rank = 8, 16",
                lines=3,
                elem_id="sweep-lines",
            )
            with gr.Row():
                self.trials = gr.Number(
                    8, label=t("sweep_trials"), precision=0, minimum=1, maximum=MOST, elem_id="sweep-trials"
                )
                self.seed = gr.Number(1, label=t("sweep_seed"), precision=0, elem_id="sweep-seed")
            with gr.Row():
                self.count = gr.Button(t("sweep_count"), size="sm", elem_id="sweep-count", min_width=90)
                self.queue = gr.Button(t("sweep_queue"), size="sm", elem_id="sweep-queue", min_width=90)
            self.said = gr.HTML(elem_id="sweep-note")

    def wire(self, group, components: list) -> None:
        """Wire it; `group` is the field with the group's name, `components` are the form's."""
        asked = [self.kind, self.lines, self.trials, self.seed]
        self.count.click(self.counted, [*asked, *components], self.said, **QUIET)
        queueing = {"show_progress": "minimal", "api_visibility": "private"}
        self.queue.click(self.queued, [*asked, group, *components], self.said, **queueing)

    def _members(self, kind, lines, trials, seed, contents) -> tuple[list[dict], list[RunConfig]]:
        given = str(lines or "").splitlines()[: 2 * len(RunConfig.model_fields)]
        number = [int(value) if isinstance(value, int | float) else 0 for value in (trials, seed)]
        changes = changes_of([], given, *number) if kind == "random" else changes_of(given, [], *number)
        return changes, members(self.config_of(list(contents)).model_dump(exclude_unset=True), changes)

    def counted(self, kind, lines, trials, seed, request: gr.Request, *contents):
        """How many runs these would be, which, and how long they take."""
        lang = language(request)
        try:
            changes, configs = self._members(kind, lines, trials, seed, contents)
            for config in configs:
                self.workspace.confine(config)
            time = sweep.told_time(sweep.seconds(configs, self.workspace))
        except UserError as error:
            return note(told(error, lang), "bad")
        listed = [words(one) for one in changes[:_SHOWN]] + (["…"] if len(changes) > _SHOWN else [])
        return note("\n".join([say("sweep_runs", lang, count=len(changes), time=time), *listed]))

    @people.needs("train")
    def queued(self, kind, lines, trials, seed, group, request: gr.Request, *contents):
        """Check all runs and queue them, or none."""
        lang = language(request)
        try:
            changes, configs = self._members(kind, lines, trials, seed, contents)

            def check(config: RunConfig, _: Workspace) -> None:
                people.check_push(config.push_to_hub)
                self.worker.ask("preflight", user_of(request), config=config.model_dump(exclude_unset=True))

            runs: list[Run] = sweep.launch(
                configs, changes, self.workspace, group_name(group), check, started_by=people.name()
            )
        except UserError as error:
            return note(told(error, lang), "bad")
        return note(say("sweep_queued", lang, count=len(runs), group=runs[0].notes().get("group", "")))
