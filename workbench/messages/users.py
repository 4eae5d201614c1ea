"""People who log in, and their roles."""

SENTENCES = {
    "user_name_wrong": (
        "The name {name} cannot be used. A name has up to 32 lower-case letters, digits, dots, hyphens and underscores, and begins with a letter or a digit.",
        "不能使用名称 {name}。名称最多 32 个字符，由小写字母、汉字、数字、点、连字符和下划线组成，并以字母、汉字或数字开头。",
    ),
    "password_length": (
        "A password has {least} to {most} characters. Choose another.",
        "密码应为 {least} 到 {most} 个字符，请另选。",
    ),
    "password_signs": (
        "A password is one line without control characters. Choose another.",
        "密码应为不含控制字符的一行文本，请另选。",
    ),
    "passwords_differ": ("The two passwords differ. Try again.", "两次输入的密码不同，请重试。"),
    "role_unknown": ("There is no role {role}. There are: {roles}.", "没有角色 {role}。可选：{roles}。"),
    "user_there": (
        "There is a user {name} already. Change the user with: workbench user password {name}, or workbench user role {name} ROLE.",
        "已有用户 {name}。修改请用：workbench user password {name}，或 workbench user role {name} ROLE。",
    ),
    "user_unknown": ("There is no user {name}. There are: {names}.", "没有用户 {name}。现有：{names}。"),
    "users_full": ("There are {most} users already.", "用户已达 {most} 个。"),
    "users_not_names": (
        "it should hold names, each with a role and a password. Write it with: workbench user add.",
        "应为名称，各带 role 与 password。请用 workbench user add 写入。",
    ),
    "users_many": ("it has more than {most} users.", "用户超过 {most} 个。"),
    "users_name": ("{name} cannot be a user's name.", "{name} 不能作为用户名。"),
    "users_role": ("the role of {name} should be one of {roles}.", "{name} 的角色应为 {roles} 之一。"),
    "users_password": (
        "the password of {name} is not a hash. Set it with: workbench user password {name}.",
        "{name} 的密码不是哈希值。请用 workbench user password {name} 设置。",
    ),
    "user_added": ("{name} may log in now, as {role}.", "{name} 现在可以登录，角色：{role}。"),
    "users_first": (
        "A page that is running asks for a login once it is started again.",
        "正在运行的页面重启后才会要求登录。",
    ),
    "user_changed": ("{name} is changed: {role}.", "已修改 {name}：{role}。"),
    "user_removed": (
        "{name} may not log in any more. What {name} made stays.",
        "{name} 不能再登录，其数据保留。",
    ),
    "no_users": (
        "No users yet in {folder}. Add one: python -m workbench user add NAME --role train",
        "{folder} 中还没有用户。添加：python -m workbench user add NAME --role train",
    ),
    "remove_user_sure": ("Remove the user {name}?", "移除用户 {name}？"),
    "users_without_login": (
        "users.yaml has users, and --no-auth lets everybody in without a login. Leave one of them out.",
        "users.yaml 中有用户，而 --no-auth 允许任何人不登录即可访问。请二选一。",
    ),
    "push_takes_admin": (
        "push_to_hub uploads with the token of this server, which takes the role admin; yours is {role}. Take push_to_hub out, or ask an admin.",
        "push_to_hub 会使用本服务器的令牌上传，需要管理员角色；你的角色是{role}。请去掉 push_to_hub，或请管理员操作。",
    ),
    "hosts_take_admin": (
        "Other hosts are entered with the ssh key of this server, which takes the role admin; yours is {role}. Choose this machine or Slurm, or ask an admin.",
        "连接其他主机会使用本服务器的 ssh 密钥，需要管理员角色；你的角色是{role}。请选择本机或 Slurm，或请管理员操作。",
    ),
    "role_may_not": (
        "Your role ({role}) may not do this: it needs {needed}. Ask an admin for another role.",
        "你的角色（{role}）不能这样做：需要 {needed}。请向管理员申请其他角色。",
    ),
    "logged_out": ("You are logged out. Load the page anew.", "你已退出登录，请重新加载页面。"),
    "run_of_another": (
        "{id} was started by {owner}. Only {owner} or an admin may change it.",
        "{id} 由 {owner} 启动。只有 {owner} 或管理员可以修改它。",
    ),
}
# words and clauses that become part of a sentence
PARTS = {
    "by_command_line": ("somebody without a login", "未登录者"),
    "role_look": ("look", "查看"),
    "role_train": ("train", "训练"),
    "role_admin": ("admin", "管理员"),
    "ask_password": ("Password: ", "密码："),
    "ask_again": ("Again: ", "再次输入："),
}
