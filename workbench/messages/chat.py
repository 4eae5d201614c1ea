"""Conversations, corrections, and a closer look at answers."""

SENTENCES = {
    "conversation_unknown": ("There is no such conversation.", "没有这个对话。"),
    "conversation_not_saved": ("The conversation could not be saved: {reason}.", "无法保存对话：{reason}。"),
    "conversation_too_large": (
        "The conversation has more than {most} MiB and is not saved. Begin a new one.",
        "对话超过 {most} MiB，未保存。请新建对话。",
    ),
    "version_missing": ("a message shows a version of it that is not there.", "有一条消息所指的版本不存在。"),
    "conversation_gone": ("This conversation is no longer there.", "该对话已不存在。"),
    "conversation_unreadable": ("The conversation {name} cannot be read: {reason}", "对话 {name} 无法读取：{reason}"),
    "correction_empty": ("Write the right answer, or pick one of the samples.", "请写出正确回答，或选择一个样本。"),
    "correction_same": (
        "The right answer is the same as the model's. Change it, or leave it as it is.",
        "正确回答与模型的回答相同。请修改，或保持原样。",
    ),
    "correction_no_question": ("There is no question to this answer.", "该回答没有对应的问题。"),
    "seed_wrong": (
        "Seed: '{text}' is not a whole number. Leave it empty for a random one.",
        "随机种子：'{text}' 不是整数。留空则随机。",
    ),
    "pattern_slow": (
        "The pattern {pattern!r} took more than {seconds:g} s on an answer. Write a simpler one.",
        "正则 {pattern!r} 在一个回答上用时超过 {seconds:g} 秒。请写得简单些。",
    ),
    "pattern_wrong": (
        "The pattern {pattern!r} is no regular expression: {problem}.",
        "{pattern!r} 不是正则表达式：{problem}。",
    ),
    "probe_not_object": ("{place}: a probe should be an object, not {kind}.", "{place}：探测题应为对象，现为 {kind}。"),
    "probe_prompt": ("{place}: the field 'prompt' is missing or empty.", "{place}：字段 'prompt' 缺失或为空。"),
    "probe_expect": (
        "{place}: 'expect' should be a text or a list of texts.",
        "{place}：'expect' 应为文本或文本列表。",
    ),
    "probe_judge": (
        "{place}: there is no rule '{name}'. It can be {rules}.",
        "{place}：没有规则 '{name}'。可为 {rules}。",
    ),
    "probe_pattern": (
        "{place}: 'pattern' is no regular expression: {problem}.",
        "{place}：'pattern' 不是正则表达式：{problem}。",
    ),
    "probe_empty": (
        "{place}: it needs one of 'expect', 'pattern' and 'judge'.",
        "{place}：'expect'、'pattern' 和 'judge' 至少需要一个。",
    ),
    "probe_set_missing": (
        "There is no probe set '{name}'.{guess} There are: {known}. Or give a JSONL file.",
        "没有探测集 '{name}'。{guess}现有：{known}。也可给出 JSONL 文件。",
    ),
    "probe_set_empty": ("{name} has no probes.", "{name} 中没有探测题。"),
    "wordings_count": (
        "Give between 2 and {most} wordings of the question, one a line.",
        "请给出 2 到 {most} 种问法，每行一种。",
    ),
    "conversation_unreadable_at": (
        "The conversation {name} cannot be read: {where}: {problem}.",
        "对话 {name} 无法读取：{where}：{problem}。",
    ),
    "probe_not_json": (
        "{place}: not valid JSON (line {line}): {problem}.",
        "{place}：不是有效的 JSON（第 {line} 行）：{problem}。",
    ),
}
