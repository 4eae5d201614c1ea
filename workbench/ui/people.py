"""Who asks: the users that may log in, what a role may do, and what is a user's own.

A handler says with `needs` which role it takes. `Guarded` looks at that before the handler runs, whatever the browser
shows, and what the role may not do is disabled in the page. Handlers ask `current` who is there; where nobody logs in,
everybody may do everything.
"""

import asyncio
import hmac
import sys
from collections.abc import Callable
from contextvars import ContextVar

import gradio as gr

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.runs.run import Run
from workbench.storage.users import User, Users, role_word
from workbench.storage.workspace import Workspace
from workbench.ui.notes import told
from workbench.ui.strings import language

_current: ContextVar[User | None] = ContextVar("user", default=None)


def needs(role: str, handler: Callable | None = None):
    """Mark a handler as one that takes a role: `@needs("train")`, or `needs("train", handler)`."""

    def mark(function):
        function.needs = role
        return function

    return mark if handler is None else mark(handler)


def current() -> User | None:
    """The user who asks; None where nobody logs in."""
    return _current.get()


def check(role: str) -> None:
    """Raise UserError where the user's role may not do what `role` may."""
    user = current()
    if user is not None and not user.may(role):
        raise UserError("role_may_not", role=role_word(user.role), needed=role_word(role))


def check_push(pushes) -> None:
    """Raise UserError where a run would upload what it trains (`pushes`: its `push_to_hub`), with the token of whoever
    runs the server, for a user who is no admin."""
    user = current()
    if pushes and user is not None and not user.may("admin"):
        raise UserError("push_takes_admin", role=role_word(user.role))


def check_hosts() -> None:
    """Raise UserError where other hosts would be entered, with the key of whoever runs the server, for a user who is no
    admin."""
    user = current()
    if user is not None and not user.may("admin"):
        raise UserError("hosts_take_admin", role=role_word(user.role))


def name() -> str:
    """The name of the user who asks; empty where nobody logs in."""
    user = current()
    return user.name if user else ""


def check_own(run: Run) -> None:
    """Raise UserError where a run is another user's, and this one is no admin."""
    user = current()
    owner = run.stored_state().started_by
    if user is not None and not user.may("admin") and owner != user.name:
        raise UserError("run_of_another", id=run.id, owner=owner or Message("by_command_line"))


def may_change(run: Run | None) -> bool:
    """Whether the user may stop, resume, delete or name a run: one of the user's own, or an admin."""
    if run is None or not (user := current()):
        return run is not None
    return user.may("admin") or (user.may("train") and run.stored_state().started_by == user.name)


def own(workspace: Workspace) -> Workspace:
    """The workspace with the user's own conversations and corrections. Who logs in with `--auth` has everybody's, as
    where nobody logs in."""
    user = current()
    return workspace.of_user(user.name) if user and user.stored else workspace


class People:
    """Who may log in: those of `users.yaml`, and the one of `--auth`, an admin."""

    def __init__(self, users: Users, single: tuple[str, str] | None = None):
        self.users, self.single = users, single
        self._stored: dict[str, str] = {}  # by login: the hash that the password had then
        self._told = ""

    def find(self, name: str | None) -> User | None:
        """The user of this name as the file has it now; None where it cannot be read."""
        if self.single and name == self.single[0]:
            return User(name, "admin")
        try:
            return self.users.read().get((name or "").strip().lower())
        except UserError as error:  # nobody of it is let in until it is mended
            if str(error) != self._told:
                self._told = str(error)
                print(error, file=sys.stderr)
            return None

    async def login(self, name: str, password: str) -> bool:
        """Whether name and password are right; for Gradio."""
        if self.single and name == self.single[0]:
            return hmac.compare_digest(password.encode("utf-8", "replace"), self.single[1].encode())
        if self.find(name) is None and self._told:
            return False
        return await asyncio.to_thread(self._check, name, password)

    def _check(self, name: str, password: str) -> bool:
        try:
            return self.users.check(name, password) is not None
        except UserError:
            return False

    def holder(self, tokens: dict[str, str], token: str | None) -> User | None:
        """The user of a login. One whose name is gone, or whose password has changed since, ends."""
        if not token or token not in tokens:
            return None
        user = self.find(tokens[token])
        if user is None or self._stored.setdefault(token, user.stored) != user.stored:
            tokens.pop(token, None)
            self._stored.pop(token, None)
            return None
        if len(self._stored) > 2 * len(tokens) + 100:
            self._stored = {kept: stored for kept, stored in self._stored.items() if kept in tokens}
        return user


class Guarded(gr.Blocks):
    """A page whose handlers run only for who may run them."""

    people: People | None = None

    def needed(self) -> dict[int, str]:
        """Which role the components take whose events change something, by id."""
        found = {}
        for function in self.fns.values():
            if role := getattr(function.fn, "needs", ""):
                found |= {part: role for part, _ in function.targets if part in self.blocks}
        for part, block in self.blocks.items():
            if role := getattr(block, "needs", ""):
                found[part] = role
        return found

    async def process_api(self, block_fn, inputs, state=None, request=None, *more, **named):
        """As Gradio does it, for a user who may."""
        block_fn = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        if self.people is None:
            return await super().process_api(block_fn, inputs, state, request, *more, **named)
        user = self.people.find(getattr(request, "username", None))
        lang = language(request)
        if user is None:
            raise gr.Error(told(Message("logged_out"), lang), print_exception=False)
        _current.set(user)
        try:
            check(getattr(block_fn.fn, "needs", "look"))
        except UserError as error:
            raise gr.Error(told(error, lang), print_exception=False) from None
        result = await super().process_api(block_fn, inputs, state, request, *more, **named)
        self._hold_back(block_fn, result.get("data"), user)
        return result

    def _hold_back(self, block_fn, data, user: User) -> None:
        """What a handler enables stays disabled for a role that may not use it."""
        closed = self._closed(user.role)
        for part, value in zip(block_fn.outputs, data or (), strict=False):
            if part._id in closed and isinstance(value, dict) and value.get("interactive"):
                value["interactive"] = False

    def _closed(self, role: str) -> set[int]:
        user = User("", role)
        if not hasattr(self, "_closed_for"):
            self._closed_for: dict[str, set[int]] = {}
        if role not in self._closed_for:
            self._closed_for[role] = {part for part, needed in self.needed().items() if not user.may(needed)}
        return self._closed_for[role]
