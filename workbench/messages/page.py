"""Starting the page."""

SENTENCES = {
    "port_taken": (
        "Port {port} on {host} cannot be used: {reason}. Choose another with --port.",
        "{host} 的端口 {port} 无法使用：{reason}。请用 --port 另选。",
    ),
    "workspace_taken": (
        "Another page works on this workspace: {other}. Use that one, or look on with --read-only.",
        "另一个页面正在使用该工作区：{other}。请使用那个页面，或用 --read-only 旁观。",
    ),
    "root_path_wrong": (
        "--root-path {path} should begin with a slash, such as /workbench.",
        "--root-path {path} 应以斜杠开头，如 /workbench。",
    ),
    "trusted_proxy_wrong": (
        "--trusted-proxy should be an address such as 127.0.0.1, or a network such as 10.0.0.0/8: {problem}.",
        "--trusted-proxy 应为地址（如 127.0.0.1）或网络（如 10.0.0.0/8）：{problem}。",
    ),
    "auth_form": ("--auth should have the form USER:PASSWORD.", "--auth 应为 USER:PASSWORD 的形式。"),
    "open_on_host": (
        "On {host} others can reach the page: give --auth USER:PASSWORD, add users (workbench user add), or give --no-auth to let everybody in.",
        "在 {host} 上其他人也能访问页面：请给出 --auth USER:PASSWORD，或添加用户（workbench user add）；若允许任何人访问，请用 --no-auth。",
    ),
    "open_by_proxy": (
        "By another name or a proxy others can reach the page: give --auth USER:PASSWORD, add users (workbench user add), or give --no-auth to let everybody in.",
        "通过其他名称或代理，其他人也能访问页面：请给出 --auth USER:PASSWORD，或添加用户（workbench user add）；若允许任何人访问，请用 --no-auth。",
    ),
}
# words and clauses that become part of a sentence
PARTS = {
    "elsewhere": ("elsewhere", "位置不明"),
}
