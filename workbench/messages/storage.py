"""Files, folders, hubs, the workspace."""

SENTENCES = {
    "not_regular_file": ("it is not a regular file.", "不是普通文件。"),
    "reason_given": ("{reason}.", "{reason}。"),
    "has_more_mib": ("it has more than {most} MiB.", "超过 {most} MiB。"),
    "not_utf8": ("it is not UTF-8 text (byte {byte}).", "不是 UTF-8 文本（第 {byte} 个字节）。"),
    "not_json_object": ("it should hold a JSON object.", "应为 JSON 对象。"),
    "not_json": ("it is not valid JSON (line {line}): {problem}.", "不是有效的 JSON（第 {line} 行）：{problem}。"),
    "nested_deep": ("it is nested more than {most} deep.", "嵌套超过 {most} 层。"),
    "yaml_reference": ("it has a reference (*{name}); write the value out.", "含有引用（*{name}），请直接写出其值。"),
    "cannot_be_read": ("{what} cannot be read: {reason}", "{what}：无法读取，{reason}"),
    "not_yaml": ("it is not valid YAML: {problem}.", "不是有效的 YAML：{problem}。"),
    "not_yaml_line": ("it is not valid YAML in line {line}: {problem}.", "第 {line} 行不是有效的 YAML：{problem}。"),
    "modelscope_failed": (
        "{name} cannot be fetched from ModelScope: {reason} {advice}",
        "无法从 ModelScope 获取 {name}：{reason} {advice}",
    ),
    "modelscope_missing": (
        "USE_MODELSCOPE_HUB or ms_hub_url asks for ModelScope, whose package is not installed. Run: pip install modelscope",
        "USE_MODELSCOPE_HUB 或 ms_hub_url 要求使用 ModelScope，但未安装其软件包。请运行：pip install modelscope",
    ),
    "by_hand": (
        "Check the network, or set HF_ENDPOINT to a mirror. By hand: run `{command}` where there is a network and put the folder into the workspace as models/{folder}.",
        "请检查网络，或将 HF_ENDPOINT 设为镜像站。也可手动下载：在有网络的机器上运行 `{command}`，再将文件夹放入工作区的 models/{folder}。",
    ),
    "by_hand_modelscope": (
        "Check the network. By hand: run `{command}` where there is a network and put the folder into the workspace as models/{folder}.",
        "请检查网络。也可手动下载：在有网络的机器上运行 `{command}`，再将文件夹放入工作区的 models/{folder}。",
    ),
    "workspace_not_created": (
        "The workspace {folder} cannot be created: {reason}. Choose another with --workspace.",
        "无法创建工作区 {folder}：{reason}。请用 --workspace 另选位置。",
    ),
    "page_read_only": (
        "This page is read-only: another one works on this workspace. Use that one.",
        "本页面为只读：另一个页面正在使用该工作区，请使用那个页面。",
    ),
    "path_incoming": (
        "The {what} {path} is an upload that is not a dataset yet. Add it on the Data tab.",
        "{what}：{path} 是上传的文件，尚未成为数据集。请在“数据”页添加。",
    ),
    "path_conversations": (
        "The {what} {path} holds conversations, which are not read from here. Download one in the Chat tab, and add it on the Data tab.",
        "{what}：{path} 含有对话记录，不能在此读取。请在“对话”页下载，再在“数据”页添加。",
    ),
    "path_device": (
        "The {what} {path} is a device or a pipe. Name a file or a folder.",
        "{what}：{path} 是设备或管道，请指定文件或文件夹。",
    ),
    "path_outside": (
        "The {what} {path} is outside the workspace {root}. Move it there, or start the page with --allow {parent}.",
        "{what}：{path} 在工作区 {root} 之外。请移入工作区，或启动页面时加上 --allow {parent}。",
    ),
    "output_outside": (
        "The output_dir {path} is outside the workspace {root}. Give a path inside it, such as saves/{name}.",
        "output_dir：{path} 在工作区 {root} 之外。请指定工作区内的路径，如 saves/{name}。",
    ),
    "output_reserved": (
        "The output_dir {path} belongs to the workspace itself. Give another, such as saves/{name}.",
        "output_dir：{path} 是工作区自用的文件夹。请另选，如 saves/{name}。",
    ),
    "remote_code_off": (
        "This server does not run code that comes with models or as a reward. Untick trust_remote_code and trust_reward_code, or start the page with --allow-remote-code.",
        "本服务器不运行模型自带的代码或奖励代码。请取消勾选 trust_remote_code 与 trust_reward_code，或启动页面时加上 --allow-remote-code。",
    ),
    "path_impossible": (
        "The {what} {path!r} cannot be a path: {reason}.",
        "{what}：{path!r} 不是可用的路径：{reason}。",
    ),
    "path_unresolved": ("The {what} cannot be a path: {reason}.", "{what}：不是可用的路径：{reason}。"),
    "no_locks": (
        "Files in {folder} cannot be locked ({reason}). Mount that file system with locks (NFS: without nolock, Lustre: with flock), or use another --workspace.",
        "{folder} 中的文件无法加锁（{reason}）。请以支持锁的方式挂载该文件系统（NFS：不用 nolock；Lustre：用 flock），或换用其他 --workspace。",
    ),
    "dataset_folder_missing": (
        "There is no dataset folder {folder}. Set dataset_dir to the folder that holds dataset_info.json.",
        "没有数据集文件夹 {folder}。请将 dataset_dir 设为含有 dataset_info.json 的文件夹。",
    ),
}
# words and clauses that become part of a sentence
PARTS = {
    "not_parsed": ("it cannot be parsed", "无法解析"),
    "the_text": ("The text", "文本"),
    "size_of_list": ("{kind} of {count}", "{kind}（{count} 项）"),
    "holds_nul": ("it holds a NUL", "含有 NUL 字符"),
}
