"""The Chat tab's list of conversations: search, open, rename, delete, download."""

import contextlib

import gradio as gr

from workbench.chat import conversations
from workbench.chat.session import Session
from workbench.errors import UserError
from workbench.storage.workspace import Workspace, slug
from workbench.ui import people
from workbench.ui.catalogue import say
from workbench.ui.notes import LATEST, QUIET, note, told
from workbench.ui.questions import asking
from workbench.ui.strings import language, t
from workbench.ui.tabs.data.shared import outgoing_folder


class History:
    """Widgets and handlers; a conversation that is opened replaces the tab's session."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace

    @property
    def workspace(self) -> Workspace:
        """With the conversations of the user who asks."""
        return people.own(self._workspace)

    def build(self) -> None:
        with gr.Accordion(t("conversations"), open=False, elem_id="history"):
            self.words = gr.Textbox(label=t("search"), max_lines=1, elem_id="history-search")
            self.list = gr.Dropdown([], label=t("conversations"), elem_id="history-list")
            self.title = gr.Textbox(label=t("title"), max_lines=1, elem_id="history-title")
            with gr.Row():
                self.fresh = gr.Button(t("new_conversation"), size="sm", elem_id="history-new", min_width=70)
                self.rename = gr.Button(t("rename"), size="sm", elem_id="history-rename", min_width=70)
                self.delete = gr.Button(t("delete"), size="sm", variant="stop", elem_id="history-delete", min_width=70)
            self.kind = gr.Radio(
                [("JSONL", "jsonl"), ("Markdown", "md")], value="jsonl", label=t("export_as"), elem_id="history-kind"
            )
            self.export = gr.Button(t("download"), size="sm", elem_id="history-export")
            self.file = gr.DownloadButton(visible="hidden", elem_id="history-file")
            self.note = gr.HTML(elem_id="history-note")

    def choices(self, query: str = "") -> list[tuple[str, str]]:
        listed = conversations.listed(self.workspace, query or "")
        if not query:
            listed += conversations.unreadable(self.workspace)
        return [(c.shown_title, c.id) for c in listed]

    def keep(self, talk: Session) -> str:
        """Save the session as it is; a sentence when that fails."""
        if not any(talk.columns) or self.workspace.read_only:
            return ""
        with contextlib.suppress(UserError):
            if conversations.load(self.workspace, talk.id).changed > talk.saved_at:
                talk.id = conversations.new_id()  # another tab has gone on with it: keep both
        try:
            kept = talk.saved()
            conversations.save(self.workspace, kept)
        except UserError as error:
            return error.message
        talk.saved_at = kept.changed
        return ""

    def wire(self, talk, opened, shown_in: list, look) -> None:
        """`opened(session, lang)` gives values for `shown_in`; `talk` is the session's gr.State; `look(event)` adds
        what follows."""

        def find(query):
            return gr.Dropdown(choices=self.choices(query))

        def open_(id_, current, request: gr.Request):
            self.keep(current)
            current.turn += 1  # an answer that is being written there ends
            try:
                session = Session.opened(conversations.load(self.workspace, id_))
            except UserError as error:
                return [note(told(error, language(request)), "bad"), gr.skip(), gr.skip(), *[gr.skip()] * len(shown_in)]
            return ["", session.title, session, *opened(session, language(request))]

        def rename(id_, title, query, current, request: gr.Request):
            try:
                renamed = conversations.rename(self.workspace, id_, title or "")
            except UserError as error:
                return note(told(error, language(request)), "bad"), gr.skip()
            if current.id == id_:
                current.title, current.saved_at = renamed.title, renamed.changed
            return note(say("saved", language(request))), gr.Dropdown(choices=self.choices(query), value=id_)

        def delete(id_, query, current, request: gr.Request):
            lang = language(request)
            if not id_:  # nothing is chosen, or the question was answered with no
                return [gr.skip()] * (3 + len(shown_in))
            try:
                conversations.delete(self.workspace, id_)
            except UserError as error:
                return [note(told(error, lang), "bad"), gr.skip(), gr.skip(), *[gr.skip()] * len(shown_in)]
            listed = gr.Dropdown(choices=self.choices(query), value=None)
            if current.id != id_:
                return [note(say("deleted", lang)), listed, gr.skip(), *[gr.skip()] * len(shown_in)]
            current.turn += 1
            session = Session()
            return [note(say("deleted", lang)), listed, session, *opened(session, lang)]

        def export(id_, kind, current, request: gr.Request):
            try:
                conversation = conversations.load(self.workspace, id_) if id_ else current.saved()
            except UserError as error:
                return note(told(error, language(request)), "bad"), gr.skip()
            write = conversations.as_jsonl if kind == "jsonl" else conversations.as_markdown
            file = outgoing_folder() / f"{slug(conversation.shown_title)}.{kind}"
            file.write_text(write(conversation), encoding="utf-8")
            return "", gr.DownloadButton(value=str(file))

        def fresh(current, request: gr.Request):
            self.keep(current)
            current.turn += 1
            session = Session()
            return [None, "", session, *opened(session, language(request))]

        self.words.change(find, self.words, self.list, **LATEST)
        self.list.focus(find, self.words, self.list, **QUIET)
        look(self.list.input(open_, [self.list, talk], [self.note, self.title, talk, *shown_in], **LATEST))
        self.rename.click(rename, [self.list, self.title, self.words, talk], [self.note, self.list], **QUIET)
        removing = self.delete.click(
            delete,
            [self.list, self.words, talk],
            [self.note, self.list, talk, *shown_in],
            js=asking("conversation_sure", field="#history-list input"),
            **QUIET,
        )
        look(removing)
        look(self.fresh.click(fresh, talk, [self.list, self.title, talk, *shown_in], **QUIET))
        self.export.click(
            export,
            [self.list, self.kind, talk],
            [self.note, self.file],
            show_progress="hidden",
            show_progress_on=[],
            api_visibility="private",
        ).then(None, None, None, js="() => setTimeout(() => document.querySelector('#history-file').click(), 300)")
