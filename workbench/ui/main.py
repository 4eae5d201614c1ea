"""Start the page: `python app.py` or `workbench page`, with `--host --port --workspace --auth --api-key --lang
--read-only` and more.

It binds 127.0.0.1 unless told otherwise, and then wants --auth, users (`workbench user add`) or --no-auth. It never
imports torch.
"""

import argparse
import contextlib
import ctypes
import os
import socket
import sys
from pathlib import Path

from workbench import loading_libraries

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="QLoRA Workbench: the page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port (default 7860)")
    parser.add_argument("--workspace", default="workspace", help="folder for runs and models (default ./workspace)")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FOLDER", help="another folder that the page may read"
    )
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        default=os.environ.get("WORKBENCH_AUTH", ""),
        help="login for the page",
    )
    parser.add_argument("--no-auth", action="store_true", help="allow other addresses than loopback without a login")
    parser.add_argument(
        "--api-key", default=os.environ.get("WORKBENCH_API_KEY", ""), help="key that clients of /v1 must send"
    )
    parser.add_argument("--lang", choices=["en", "zh"], help="language of the page (default: the browser's)")
    parser.add_argument("--read-only", action="store_true", help="only look at runs, beside another page")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help=(
            "another name under which this server is reached (loopback and --host are known); *.example.com for all"
            " below it"
        ),
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address or network of a reverse proxy whose X-Forwarded headers count",
    )
    parser.add_argument("--root-path", default="", help="path prefix behind a reverse proxy")
    parser.add_argument(
        "--allow-remote-code",
        action="store_true",
        help="let models bring Python code (trust_remote_code must be ticked, too)",
    )
    return parser.parse_args(arguments)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError when the port is taken or the address is not this machine's."""
    from workbench.errors import UserError

    # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named; else each is 40 ms late
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError("port_taken", port=port, host=host, reason=reason) from None
    listener.listen(128)
    return listener


def claim(folder: Path, url: str) -> None:
    """Lock the workspace for this page, as long as this process lives.

    Raises:
        UserError: another page has it.
    """
    from workbench.errors import UserError
    from workbench.messages.message import Message
    from workbench.storage.files import write_atomically
    from workbench.storage.locks import try_lock

    holder = folder / ".page"
    if try_lock(folder / ".page.lock") is None:
        other = holder.read_text() if holder.is_file() else Message("elsewhere")
        raise UserError("workspace_taken", other=other)
    write_atomically(holder, f"{url} (pid {os.getpid()})")


def incoming(workspace) -> None:
    """Let gradio keep uploads inside the workspace, so that taking one in costs no copy; what an earlier page left
    there is deleted."""
    import shutil
    import time

    folder = workspace.uploads / ".incoming"
    if not workspace.read_only:
        shutil.rmtree(folder, ignore_errors=True)
        for rest in workspace.uploads.glob(".new-*"):  # of what was killed; younger ones may be another process's work
            with contextlib.suppress(OSError):
                if time.time() - rest.stat().st_mtime > 86_400:
                    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["GRADIO_TEMP_DIR"] = str(folder)


def _door(options: argparse.Namespace):
    """Under which names the server answers, and which proxies it believes. Raises UserError."""
    from workbench.engine.door import Door
    from workbench.errors import UserError

    bound = [] if options.host in ("0.0.0.0", "::", "") else [options.host]
    if options.root_path and not options.root_path.startswith("/"):
        raise UserError("root_path_wrong", path=options.root_path)
    try:
        return Door((*bound, *options.allowed_host), tuple(options.trusted_proxy), options.root_path)
    except ValueError as error:
        raise UserError("trusted_proxy_wrong", problem=error) from None


def _few_arenas() -> None:
    """Let glibc's allocator share two arenas among all threads: with one for each, every thread that has once answered
    keeps its high-water mark."""
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


def main(arguments: list[str] | None = None, lang: str = "en") -> int:
    """Serve the page until it is stopped. `lang`: of an error, where `--lang` says nothing."""
    from workbench.engine.door import LOOPBACK
    from workbench.errors import UserError
    from workbench.messages.message import Message
    from workbench.storage.users import Users
    from workbench.storage.workspace import Workspace
    from workbench.ui.stubs import no_stubs_written

    options = parse(arguments)
    _few_arenas()
    try:
        # behind a proxy, or under another name, others can reach it, too
        local = options.host in LOOPBACK and not options.allowed_host and not options.trusted_proxy
        users = Users(Workspace(options.workspace))
        logins = bool(users.read())
        if logins and options.no_auth:
            raise UserError("users_without_login")
        if not local and not options.auth and not options.no_auth and not logins:
            if options.host in LOOPBACK:
                raise UserError("open_by_proxy")
            raise UserError("open_on_host", host=options.host)
        if options.auth and ":" not in options.auth:
            raise UserError("auth_form")
        listener = listen(options.host, options.port)
        workspace = Workspace(
            options.workspace, options.allow, options.read_only, remote_code=options.allow_remote_code, confined=True
        ).create()
        os.environ["WORKBENCH_ALLOW"] = os.pathsep.join(
            str(Path(folder).resolve()) for folder in options.allow
        )  # for what it starts
        door = _door(options)
        shown = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        if not options.read_only:
            claim(workspace.root, url)
        incoming(workspace)
    except UserError as error:
        print(Message("error_line", error=error).text(options.lang or lang), file=sys.stderr)
        return 2

    with loading_libraries(), no_stubs_written():
        import uvicorn

        from workbench.engine.quiet_end import end_quietly
        from workbench.ui.page import build_server
        from workbench.ui.people import People

    single = tuple(options.auth.split(":", 1)) if options.auth else None
    people = People(users, single) if single or logins else None
    app, engine = build_server(
        workspace, auth=people, api_key=options.api_key, lang=options.lang, local=local, door=door
    )
    print(f"QLoRA Workbench: {url}  (workspace {workspace.root})", flush=True)
    # the gate itself looks at what proxies say
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=2, proxy_headers=False, server_header=False, ws="none"
        )
    )
    end_quietly()
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises it again when all has ended
        pass
    finally:
        engine.unload()
    return 0
