"""Who may log in to the page: add, list, change and remove users of a workspace."""

import getpass
import json
import sys
from typing import Annotated

import typer

from workbench.cli.shared import WORKSPACE, JsonOption, WorkspaceOption, tell, told_here
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.users import LONGEST, Users, check_name, check_role, role_word
from workbench.storage.workspace import Workspace

users_app = typer.Typer(no_args_is_help=True, help="Who may log in to the page: add, list, password, role, remove.")
NameArgument = Annotated[str, typer.Argument(help="The user's name.")]
RoleOption = Annotated[str, typer.Option("--role", help="look, train or admin.")]


def _users(workspace) -> Users:
    return Users(Workspace(workspace))


def _password() -> str:
    """Asked for twice without echo in a terminal; otherwise the first line of what comes in. Raises UserError."""
    if not sys.stdin.isatty():
        return sys.stdin.readline(LONGEST + 2).removesuffix("\n").removesuffix("\r")
    password = getpass.getpass(told_here(Message("ask_password")))
    if password != getpass.getpass(told_here(Message("ask_again"))):
        raise UserError("passwords_differ")
    return password


@users_app.command("add")
def add(name: NameArgument, role: RoleOption = "train", workspace: WorkspaceOption = WORKSPACE):
    """Let somebody log in; asks for the password, or reads it from stdin."""
    check_name(name)
    check_role(role)
    users = Users(Workspace(workspace).create())
    first = not users.read()
    user = users.add(name, role, _password())
    tell(Message("user_added", name=user.name, role=role_word(user.role)))
    if first:
        tell(Message("users_first"))


@users_app.command("list")
def list_(json_: JsonOption = False, workspace: WorkspaceOption = WORKSPACE):
    """The users and their roles."""
    users = _users(workspace).read()
    if json_:
        print(json.dumps([{"name": user.name, "role": user.role} for user in users.values()], ensure_ascii=False))
    elif not users:
        tell(Message("no_users", folder=workspace))
    for user in () if json_ else users.values():
        print(f"{user.name:24} {user.role}")


@users_app.command("password")
def password_(name: NameArgument, workspace: WorkspaceOption = WORKSPACE):
    """Give a user another password; whoever is logged in with the old one is logged out."""
    _tell_changed(_users(workspace), name, password=_password())


@users_app.command("role")
def role_(
    name: NameArgument,
    role: Annotated[str, typer.Argument(help="look, train or admin.")],
    workspace: WorkspaceOption = WORKSPACE,
):
    """Give a user another role; it counts at once."""
    _tell_changed(_users(workspace), name, role=role)


def _tell_changed(users: Users, name: str, **changes: str) -> None:
    user = users.change(name, **changes)
    tell(Message("user_changed", name=user.name, role=role_word(user.role)))


@users_app.command("remove")
def remove(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = WORKSPACE,
):
    """Let somebody log in no more; runs, conversations and corrections stay."""
    if not yes:
        typer.confirm(told_here(Message("remove_user_sure", name=name)), abort=True)
    _users(workspace).remove(name)
    tell(Message("user_removed", name=name))
