"""The monitor beside the form: one run live, Stop, and what to do with it when it has ended."""

import gradio as gr

from workbench.errors import UserError
from workbench.runs.run import Run, find_run, list_states, run_named
from workbench.storage.workspace import Workspace
from workbench.train import queue
from workbench.ui import monitor, people
from workbench.ui.catalogue import say
from workbench.ui.notes import LATEST, QUIET, note, told
from workbench.ui.questions import asking_kill
from workbench.ui.strings import language, t
from workbench.ui.theme import CHART_JS


def run_choices(workspace: Workspace, lang: str, limit: int = 200) -> list[tuple[str, str]]:
    """Runs for a list, newest first."""
    states = list_states(workspace)[:limit]
    return [(f"{item.run.id} · {say('state_' + item.state.state, lang)}", item.run.id) for item in states]


def stop_button(state: str, lang: str, *, able: bool = True) -> dict:
    """How Stop looks for a run in this state: once it is stopping, another press kills. `able`: the user may."""
    words = say("kill_run" if state == "stopping" else "leave_queue" if state == "queued" else "stop_run", lang)
    return gr.update(value=words, interactive=able and state in ("queued", "starting", "running", "stopping"))


def has_something_to_chat_with(run: Run) -> bool:
    """Whether a run has an adapter or a checkpoint."""
    return run.has_adapter or run.has_model or bool(run.checkpoints())


class RunPanel:
    """`list` is the run that is shown; `chat` is wired by the page."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def build(self) -> None:
        """Lay the panel out."""
        with gr.Row(equal_height=True):
            # custom values: a tab that outlived a restart of the server still names its run
            self.list = gr.Dropdown(
                [],
                label=t("run"),
                elem_id="run-list",
                interactive=True,
                allow_custom_value=True,
                scale=5,
                min_width=200,
            )
            self.log_scale = gr.Checkbox(label=t("log_scale"), value=False, elem_id="log-scale", scale=1, min_width=130)
        self.status = gr.HTML(elem_id="run-status")
        with gr.Row():
            self.stop = gr.Button(
                t("stop_run"), variant="stop", elem_id="stop", size="md", interactive=False, min_width=180
            )
            self.chat = gr.Button(
                t("chat_with"), variant="primary", elem_id="train-chat", size="md", interactive=False, min_width=140
            )
        self.message = gr.HTML(elem_id="run-message")
        self.chart = gr.HTML(html_template="<div class='live-chart'></div>", js_on_load=CHART_JS, elem_id="loss-chart")
        self.log = gr.HTML(elem_id="log-box")
        self.seen = gr.State(None)

    @people.needs("train")
    def end(self, run_id, kill, request: gr.Request):
        """Stop the run, or kill it where the user has said so."""
        if not run_id or kill == "no":
            return gr.skip(), gr.skip()
        try:
            run = find_run(self.workspace, run_id)
            people.check_own(run)
            message = queue.stop(run, self.workspace, kill=kill == "kill")
        except UserError as error:
            return note(told(error, language(request)), "bad"), gr.skip()
        lang = language(request)
        return note(told(message, lang), "warn"), stop_button(run.state().state, lang)

    def look(self, run_id, log_axis, token, request: gr.Request):
        """One tick: nothing is sent unless a file of the run has changed."""
        return self._shown(run_id, log_axis, token, language(request))

    def choose(self, run_id, log_axis, request: gr.Request):
        """Another run is shown: what was said of the one before goes."""
        *shown, _ = self._shown(run_id, log_axis, None, language(request))
        return *shown, ""

    def _shown(self, run_id, log_axis, token, lang: str) -> list | tuple:
        """Outputs of `look`, in the order of `view`, then fresh choices of the list."""
        run = run_named(self.workspace, run_id)
        if run is None:
            empty = ("", lang)
            if token == empty:
                return [gr.skip()] * 7
            off = gr.update(interactive=False)
            return f"<div class='wb-sub'>{say('runs_none', lang)}</div>", "", "", off, off, empty, gr.skip()
        fresh = monitor.change_token(run, lang, log_axis)
        waiting = monitor.waiting(run, fresh, self.workspace)
        fresh = (*fresh, waiting)
        if fresh == token:
            return [gr.skip()] * 7
        state = run.state()
        changed = token is None or token[0] != run.id or token[3] != fresh[3]
        choices = gr.Dropdown(choices=run_choices(self.workspace, lang)) if changed else gr.skip()
        return (
            monitor.status_html(run, lang, waiting),
            monitor.chart_json(run, lang, log_axis),
            monitor.log_html(run),
            stop_button(state.state, lang, able=people.may_change(run)),
            gr.update(interactive=not state.active and has_something_to_chat_with(run)),
            fresh,
            choices,
        )

    def wire(self) -> None:
        """Events of the panel itself."""
        view = [self.status, self.chart, self.log, self.stop, self.chat, self.seen]
        gr.on(
            [self.list.change, self.log_scale.change],
            self.choose,
            [self.list, self.log_scale],
            [*view, self.message],
            **LATEST,
        )
        self.timer = gr.Timer(1)
        self.timer.tick(self.look, [self.list, self.log_scale, self.seen], [*view, self.list], **QUIET)
        kill = gr.Textbox(visible="hidden")
        self.stop.click(self.end, [self.list, kill], [self.message, self.stop], js=asking_kill("#run-status"), **QUIET)
