"""The Train tab's fold for where a run trains: this machine, several hosts, or Slurm. Start does the rest."""

from collections.abc import Callable
from dataclasses import dataclass, field

import gradio as gr

from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import Run
from workbench.storage.workspace import Workspace
from workbench.train import elsewhere
from workbench.train.slurm import MOST, Wishes
from workbench.ui import people
from workbench.ui.notes import QUIET
from workbench.ui.strings import t

KINDS = ("here", "hosts", "slurm")
_LINES = 50  # options for sbatch


@dataclass(frozen=True)
class Where:
    """What the fold says; it comes from a browser, and is looked at when the run starts."""

    kind: str = "here"
    hosts: str = ""
    wishes: dict = field(default_factory=dict)

    @classmethod
    def of(cls, kind="here", hosts="", partition="", time="", account="", gpus=0, nodes=1, cpus=0, lines="") -> "Where":
        """From the contents of `WherePanel.components`."""
        texts = {"partition": partition, "time": time, "account": account}
        numbers = {"gpus": gpus, "nodes": nodes, "cpus": cpus}
        wishes: dict = {name: str(value or "").strip() for name, value in texts.items()} | numbers
        wishes["sbatch"] = tuple(filter(None, (line.strip() for line in str(lines or "").splitlines())))
        return cls(kind if kind in KINDS else "here", str(hosts or "").strip(), wishes)

    def launch(
        self, config: RunConfig, workspace: Workspace, check: Callable, notes: dict[str, str]
    ) -> tuple[Run, Message]:
        """Start a run over several hosts, or submit it: the run, and what is to be said.

        Raises:
            UserError: as `train.elsewhere`; the user may not enter other hosts.
        """
        named = {"check": check, "started_by": people.name(), "notes": notes}
        if self.kind == "hosts":
            people.check_hosts()
            run = elsewhere.launch_over(self.hosts, config, workspace, **named)
            return run, Message("hosts_started", hosts=self.hosts)
        run, job = elsewhere.submit(config, workspace, self._wishes(), confined=True, **named)
        return run, Message("slurm_submitted", job=job)

    def _wishes(self) -> Wishes:
        numbers = {}
        for name in ("gpus", "nodes", "cpus"):
            value = self.wishes[name]
            whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
            if not whole or not 0 <= value <= MOST:
                raise UserError("slurm_value", name=name, value=str(value)[:80])
            numbers[name] = int(value)
        if len(self.wishes["sbatch"]) > _LINES:
            raise UserError("slurm_value", name="sbatch", value=self.wishes["sbatch"][_LINES][:80])
        return Wishes(**self.wishes | numbers)


class WherePanel:
    """Its widgets."""

    def build(self) -> None:
        """Lay the fold out."""
        with gr.Accordion(t("where_title"), open=False, elem_id="where"):
            self.kind = gr.Radio(
                [(t(f"where_{kind}"), kind) for kind in KINDS],
                value="here",
                label=t("where_kind"),
                elem_id="where-kind",
            )
            self.hosts = gr.Textbox(
                label=t("where_names"),
                info=t("where_names_info"),
                placeholder="node1:2,me@node2:4",
                max_lines=1,
                visible=False,
                elem_id="where-hosts",
            )
            with gr.Column(visible=False) as self.slurm:
                with gr.Row():
                    self.partition = self._text("partition", "gpu")
                    self.time = self._text("time", "1-00:00:00", info=t("where_time_info"))
                    self.account = self._text("account", "")
                with gr.Row():
                    self.gpus = self._number("gpus", 1, 0)
                    self.nodes = self._number("nodes", 1, 1)
                    self.cpus = self._number("cpus", 0, 0)
                self.lines = gr.Textbox(
                    label=t("where_lines"), placeholder="--constraint=h100\n--mem=64G", lines=2, elem_id="where-lines"
                )

    def _text(self, name: str, example: str, **more) -> gr.Textbox:
        return gr.Textbox(
            label=t(f"where_{name}"), placeholder=example, max_lines=1, min_width=100, elem_id=f"where-{name}", **more
        )

    def _number(self, name: str, value: int, least: int) -> gr.Number:
        return gr.Number(
            value,
            label=t(f"where_{name}"),
            precision=0,
            minimum=least,
            maximum=MOST,
            min_width=100,
            elem_id=f"where-{name}",
        )

    @property
    def components(self) -> list:
        """In the order of `Where.of`."""
        of_slurm = [self.partition, self.time, self.account, self.gpus, self.nodes, self.cpus, self.lines]
        return [self.kind, self.hosts, *of_slurm]

    def shown(self, kind):
        """Only what belongs to the choice."""
        return gr.update(visible=kind == "hosts"), gr.update(visible=kind == "slurm")

    def wire(self) -> None:
        """Wire what is shown."""
        self.kind.change(self.shown, self.kind, [self.hosts, self.slurm], **QUIET)
