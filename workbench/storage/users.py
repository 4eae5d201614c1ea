"""Who may log in to a page: `users.yaml` in the workspace. Only a salted, slow hash (scrypt) of a password is kept.

    ann:
      role: train
      password: scrypt$32768$8$1$SALT$HASH

Roles, each with all of the one before: `look` sees everything and chats with the loaded model, `train` works, `admin`
has a say in what others started, too. The command line and the page read the file anew when it has changed.
"""

import base64
import binascii
import functools
import hashlib
import hmac
import re
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

import yaml

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage import files
from workbench.storage.files import Unreadable, file_token, write_atomically
from workbench.storage.locks import locked
from workbench.storage.workspace import Workspace

FILE = "users.yaml"
_WORDS = {"look": "role_look", "train": "role_train", "admin": "role_admin"}
ROLES = tuple(_WORDS)
MAX_USERS = 1000
SHORTEST, LONGEST = 8, 256  # characters of a password
NAME = re.compile(r"[a-z0-9\u4e00-\u9fff][a-z0-9._\u4e00-\u9fff-]{0,31}")
_COST = (1 << 15, 8, 1)  # scrypt's n, r, p: 32 MiB, about 0.1 s
_MOST = (1 << 17, 16, 4)  # that a file may ask for
_AT_ONCE = threading.BoundedSemaphore(2)  # each takes a core and 32 MiB


@dataclass(frozen=True)
class User:
    """Somebody who may log in. `stored`: the hash of the password, as the file has it."""

    name: str
    role: str
    stored: str = ""

    def may(self, role: str) -> bool:
        """Whether the user may do what this role may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def role_word(role: str) -> Message:
    """A role in words."""
    return Message(_WORDS[role])


def hashed(password: str) -> str:
    """A salted slow hash of a password, with its costs."""
    salt = secrets.token_bytes(16)
    costs = "$".join(map(str, _COST))
    return f"scrypt${costs}${_text(salt)}${_text(_scrypt(password, salt, *_COST))}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    with _AT_ONCE:
        return hashlib.scrypt(data, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r + (1 << 20), dklen=32)


def _parts(stored: str) -> tuple[tuple[int, int, int], bytes, bytes] | None:
    """`(costs, salt, hash)` of a stored hash; None if it is none, or costs more than is paid here."""
    kind, *fields = stored.split("$")
    if kind != "scrypt" or len(fields) != 5 or not all(re.fullmatch(r"[1-9]\d{0,6}", cost) for cost in fields[:3]):
        return None
    n, r, p = map(int, fields[:3])
    if n < 2 or n & (n - 1) or any(cost > most for cost, most in zip((n, r, p), _MOST, strict=True)):
        return None
    try:
        salt, wanted = (base64.b64decode(field, validate=True) for field in fields[3:])
    except binascii.Error:
        return None
    return ((n, r, p), salt, wanted) if 8 <= len(salt) <= 64 and len(wanted) == 32 else None


@functools.cache
def _nobody() -> str:
    """A hash that no password has, so that a name that is not known takes as long as one that is."""
    return hashed(secrets.token_urlsafe(32))


def matches(password: str, stored: str) -> bool:
    """Whether a password is the one that was hashed."""
    parts = _parts(stored)
    if parts is None or len(password) > LONGEST:
        return False
    costs, salt, wanted = parts
    return hmac.compare_digest(_scrypt(password, salt, *costs), wanted)


def check_name(name: str) -> str:
    """The name as it is kept. Raises UserError: it cannot be one."""
    name = name.strip().lower()
    if not NAME.fullmatch(name):
        raise UserError("user_name_wrong", name=files.shown(name, 40))
    return name


def check_password(password: str) -> None:
    """Raise UserError for a password that is too short or too long, or that a form cannot send."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise UserError("password_length", least=SHORTEST, most=LONGEST)
    if any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in password):
        raise UserError("password_signs")


def check_role(role: str) -> None:
    """Raise UserError for what is no role."""
    if role not in ROLES:
        raise UserError("role_unknown", role=files.shown(role, 40), roles=list(ROLES))


class Users:
    """The users of a workspace. All methods may be called from any thread."""

    def __init__(self, workspace: Workspace):
        self.path: Path = workspace.root / FILE
        self._lock = threading.Lock()
        self._known: tuple[tuple, dict[str, User]] | None = None

    def read(self) -> dict[str, User]:
        """The users by name; none where there is no file.

        Raises:
            UserError: the file cannot be read, or says something else than names with a role and a hash.
        """
        with self._lock:
            token = file_token(self.path)
            if self._known is None or self._known[0] != token or token == (None,):
                self._known = token, self._read()
            return self._known[1]

    def _read(self) -> dict[str, User]:
        try:
            stored = files.parse_yaml(files.read_text(self.path, files.MAX_YAML), str(self.path))
        except FileNotFoundError:
            return {}
        if stored is None:
            return {}
        if not isinstance(stored, dict):
            raise Unreadable(str(self.path), Message("users_not_names"))
        if len(stored) > MAX_USERS:
            raise Unreadable(str(self.path), Message("users_many", most=MAX_USERS))
        users = {}
        for name, entry in stored.items():
            entry = entry if isinstance(entry, dict) else {}
            role, password = entry.get("role"), entry.get("password")
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise Unreadable(str(self.path), Message("users_name", name=files.shown(name, 40)))
            if role not in ROLES:
                raise Unreadable(str(self.path), Message("users_role", name=name, roles=list(ROLES)))
            if not isinstance(password, str) or _parts(password) is None:
                raise Unreadable(str(self.path), Message("users_password", name=name))
            users[name] = User(name, role, password)
        return users

    def check(self, name: str, password: str) -> User | None:
        """The user with this name and password, or None; a name that is not known takes as long. Raises as `read`."""
        user = self.read().get(name.strip().lower())
        right = matches(password, user.stored if user else _nobody())
        return user if user and right else None

    def _change(self, change) -> None:
        with locked(self.path.with_name(f".{FILE}.lock")):
            users = dict(self.read())
            change(users)
            entries = {user.name: {"role": user.role, "password": user.stored} for user in users.values()}
            text = "# Who may log in to the page, written by `workbench user`.\n"
            body = yaml.safe_dump(entries, allow_unicode=True, sort_keys=True) if entries else ""
            write_atomically(self.path, text + body, mode=0o600)

    def add(self, name: str, role: str, password: str) -> User:
        """A new user. Raises UserError: there is one of this name, or something cannot be used."""
        name = check_name(name)
        check_role(role)
        check_password(password)
        user = User(name, role, hashed(password))

        def change(users: dict[str, User]) -> None:
            if name in users:
                raise UserError("user_there", name=name)
            if len(users) >= MAX_USERS:
                raise UserError("users_full", most=MAX_USERS)
            users[name] = user

        self._change(change)
        return user

    def change(self, name: str, *, role: str = "", password: str = "") -> User:
        """Give a user another role or password. Raises UserError: there is none of this name, or it cannot be used."""
        if role:
            check_role(role)
        if password:
            check_password(password)
        stored, key = hashed(password) if password else "", name.strip().lower()

        def change(users: dict[str, User]) -> None:
            old = _found(users, key)
            users[key] = User(key, role or old.role, stored or old.stored)

        self._change(change)
        return self.read()[key]

    def remove(self, name: str) -> None:
        """Take a user out; what the user made stays. Raises UserError: there is none of this name."""
        key = name.strip().lower()

        def change(users: dict[str, User]) -> None:
            _found(users, key)
            del users[key]

        self._change(change)


def _found(users: dict[str, User], name: str) -> User:
    if name not in users:
        raise UserError("user_unknown", name=files.shown(name, 40), names=sorted(users) or Message("none_yet"))
    return users[name]
