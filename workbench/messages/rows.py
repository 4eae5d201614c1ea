"""Rows: what is wrong with one, and what a chat template does to it."""

SENTENCES = {
    "row_not_object": ("a row should be an object, not {kind}.", "数据行应为对象，现为：{kind}。"),
    "line_not_utf8_save": (
        "not UTF-8 text (byte {byte} of the line). Save the file as UTF-8.",
        "不是 UTF-8 文本（该行第 {byte} 个字节）。请将文件存为 UTF-8。",
    ),
    "line_not_json": ("not valid JSON: {problem} (column {column}).", "不是有效的 JSON：{problem}（第 {column} 列）。"),
    "line_unreadable_json": ("not readable JSON: {problem}.", "无法读取的 JSON：{problem}。"),
    "row_nested_deep": ("nested more than {most} deep.", "嵌套超过 {most} 层。"),
    "gzip_damaged": ("the gzip file is damaged or cut off: {problem}.", "gzip 文件已损坏或被截断：{problem}。"),
    "line_too_large": (
        "the line has {size:,} MiB; at most {most} are read.",
        "该行有 {size:,} MiB，最多读取 {most} MiB。",
    ),
    "not_list_of_rows": (
        "the file should hold a list of rows, or one row a line.",
        "文件应为数据行的列表，或每行一条数据。",
    ),
    "list_without_end": (
        "the list does not end: its closing ] is missing. Is the file cut off?",
        "列表没有结束：缺少结尾的 ]。文件是否被截断？",
    ),
    "json_in_file": ("not valid JSON: {problem} (line {line}).", "不是有效的 JSON：{problem}（第 {line} 行）。"),
    "quote_open": (
        "a quote is opened in this record and never closed. Close it, or double quotes within a cell.",
        "该记录中的引号没有闭合。请闭合引号，或将单元格内的引号写成两个。",
    ),
    "not_csv": ("not readable as CSV: {problem}.", "无法按 CSV 读取：{problem}。"),
    "cells_count": (
        "the record has {cells} cells, but the first line names {names} fields.",
        "该记录有 {cells} 个单元格，而首行列出了 {names} 个字段。",
    ),
    "line_not_utf8": ("not UTF-8 text (byte {byte} of the line).", "不是 UTF-8 文本（该行第 {byte} 个字节）。"),
    "file_damaged": ("the file is damaged from here on: {problem}", "文件从此处起已损坏：{problem}"),
    "row_too_large": (
        "the row has {size:,} MiB; at most {most} are read.",
        "该数据行有 {size:,} MiB，最多读取 {most} MiB。",
    ),
    "row_nested": ("the row is nested too deeply.", "数据行嵌套过深。"),
    "answer_role": ("the {name} answer should be the assistant's.", "{name} 应为 assistant 的回答。"),
    "answers_same": ("the chosen answer is the same as the rejected one.", "chosen 与 rejected 的回答相同。"),
    "answers_same_cut": (
        "cut to cutoff_len, the chosen answer is the same as the rejected one.",
        "按 cutoff_len 截断后，chosen 与 rejected 的回答相同。",
    ),
    "row_no_pair": (
        "it is no preference pair: this stage needs a chosen and a rejected answer.",
        "不是偏好对：此阶段需要 chosen 与 rejected 两个回答。",
    ),
    "row_no_label": (
        "it does not say whether its answer is wanted: this stage needs a label (kto_tag), or a preference pair.",
        "未说明回答是否可取：此阶段需要标签（kto_tag）或偏好对。",
    ),
    "contains_character": ("{where} contains {code}, {what}.", "{where}：含有 {code}（{what}）。"),
    "has_media": ("it has {name}, which a run on text cannot train on.", "含有 {name}，文本训练无法使用。"),
    "where_not_utf8": (
        "{where} is not UTF-8 text. Save the file as UTF-8.",
        "{where}：不是 UTF-8 文本。请将文件存为 UTF-8。",
    ),
    "tools_not_utf8": (
        "the tools are not UTF-8 text. Save the file as UTF-8.",
        "工具不是 UTF-8 文本。请将文件存为 UTF-8。",
    ),
    "row_field_missing": ("the field '{name}' is missing.", "缺少字段 '{name}'。"),
    "row_field_text": ("the field '{name}' should be text, not {kind}.", "字段 '{name}' 应为文本，现为：{kind}。"),
    "row_field_empty": ("the field '{name}' is empty.", "字段 '{name}' 为空。"),
    "row_label_missing": ("the field '{name}' (true or false) is missing.", "缺少字段 '{name}'（true 或 false）。"),
    "row_label_type": (
        "the field '{name}' should be true or false, not {kind}.",
        "字段 '{name}' 应为 true 或 false，现为：{kind}。",
    ),
    "row_tools_json": ("the field 'tools' is not valid JSON.", "字段 'tools' 不是有效的 JSON。"),
    "row_tools_object": (
        "every tool should be an object with a name, a description and parameters.",
        "每个工具应为包含 name、description 和 parameters 的对象。",
    ),
    "call_not_json": ("{where}: the function call is not valid JSON.", "{where}：函数调用不是有效的 JSON。"),
    "call_not_object": (
        "{where}: a function call should be an object with name and arguments.",
        "{where}：函数调用应为包含 name 和 arguments 的对象。",
    ),
    "call_arguments_json": (
        "{where}: the arguments of {name} are not valid JSON.",
        "{where}：{name} 的参数不是有效的 JSON。",
    ),
    "call_arguments_object": (
        "{where}: the arguments of {name} should be an object.",
        "{where}：{name} 的参数应为对象。",
    ),
    "call_missing": ("{where}: there is no function call in it.", "{where}：其中没有函数调用。"),
    "row_history": (
        "the field '{name}' should be a list of [question, answer] pairs.",
        "字段 '{name}' 应为 [问题，回答] 对的列表。",
    ),
    "row_history_empty": ("the field '{name}' has a pair with an empty text.", "字段 '{name}' 中有一对含空文本。"),
    "row_no_question": (
        "there is no question: neither a prompt nor a common beginning of chosen and rejected.",
        "没有问题：既没有 prompt，chosen 和 rejected 也没有共同的开头。",
    ),
    "row_field_missing_or_empty": ("the field '{name}' is missing or empty.", "字段 '{name}' 缺失或为空。"),
    "row_turns_type": (
        "the field '{name}' should be a list of turns, not {kind}.",
        "字段 '{name}' 应为对话轮次的列表，现为：{kind}。",
    ),
    "row_turns_empty": ("the field '{name}' has no turns.", "字段 '{name}' 中没有对话轮次。"),
    "turn_not_object": ("{where} should be an object, not {kind}.", "{where}：应为对象，现为：{kind}。"),
    "turn_without_role": ("{where} has no '{name}'.", "{where}：没有 '{name}'。"),
    "turn_unknown_role": (
        "{where} has the unknown role {role!r}. It can be {roles}.",
        "{where}：未知的角色 {role!r}。可为 {roles}。",
    ),
    "turn_without_text": ("{where} ({role}) has no text.", "{where}（{role}）：没有文本。"),
    "turn_weight": (
        "{where}: the weight {value} should be 0 or 1; shares are not supported.",
        "{where}：权重 {value} 应为 0 或 1；不支持小数比例。",
    ),
    "turn_part": (
        "{where} holds a part of the kind {kind!r}; only text can be trained on.",
        "{where}：含有 {kind!r} 类型的部分；只能训练文本。",
    ),
    "turn_field_text": ("{where}: '{name}' should be text, not {kind}.", "{where}：'{name}' 应为文本，现为：{kind}。"),
    "only_system": ("there are no turns but the system text.", "除系统提示词外没有任何对话轮次。"),
    "no_assistant": (
        "the assistant never speaks, so there is nothing to learn.",
        "assistant 从未发言，没有可学习的内容。",
    ),
    "wrong_end": ("it ends with a turn of the {role}, not with {should}.", "最后一轮是 {role}，应结束于：{should}。"),
    "turn_order": (
        "turn {number} ({role}) is out of order: it comes {after}.",
        "第 {number} 轮（{role}）顺序不对：它出现在{after}。",
    ),
    "thought_opened": (
        "In chat the template opens a thought (<think>) before the answer. The last answer here has none, so that the model is not trained on what it will be asked to go on from.",
        "对话时，模板会在回答前打开思考（<think>）。这里最后的回答不含思考，因此模型学不到对话中应从此处接着写的内容。",
    ),
    "thought_closed": (
        "In chat the prompt closes the thought before the answer, but the last answer here has one: the model is not asked like that. Set enable_thinking: on, or take the thoughts out.",
        "对话时提示词会在回答前结束思考，而这里最后的回答带有思考：模型不会被这样提问。请设置 enable_thinking: on，或去掉思考内容。",
    ),
    "tokenizer_slow": (
        "This model has only a slow tokenizer, which cannot say where tokens lie in the text.",
        "该模型只有慢速分词器，无法确定 token 在文本中的位置。",
    ),
    "template_memory": (
        "The chat template needs more memory for this conversation than there is.",
        "对话模板处理该对话所需的内存超出可用内存。",
    ),
    "template_failed": (
        "The chat template cannot render this conversation: {problem}.",
        "对话模板无法渲染该对话：{problem}。",
    ),
    "template_too_long": (
        "The chat template makes {count:,} characters of this conversation. Choose another template.",
        "对话模板将该对话渲染成了 {count:,} 个字符。请选择其他模板。",
    ),
    "template_none": (
        "This model has no chat template of its own. Choose one: {names}.",
        "该模型没有自带的对话模板。请选择一个：{names}。",
    ),
    "template_unmarked": (
        "The chat template does not mark one answer per turn, so that single turns cannot be left untrained. Choose a template: {names}.",
        "对话模板没有逐轮标出回答，因此无法只跳过某些轮次。请选择模板：{names}。",
    ),
    "template_changes": (
        "The model's own chat template renders earlier turns differently later on, so its answers cannot be told from the rest. Choose a template: {names}.",
        "模型自带的对话模板对先前轮次的渲染会随后文变化，因此无法区分出回答。请选择模板：{names}。",
    ),
    "thought_empty": (
        "The chat template writes an empty thought before the last answer, and {tokens} tokens of it are trained: the model learns not to think. With enable_thinking: off the prompt brings it, and it is not trained.",
        "对话模板会在最后的回答前写入空的思考，其中 {tokens} 个 token 参与训练：模型会因此学会不思考。设置 enable_thinking: off 时由提示词带入，不参与训练。",
    ),
    "template_leaves_needed": (
        "The chat template leaves {what} out ({piece} is not in the rendered text). Choose a template that shows {them}.",
        "对话模板略去了{what}（渲染后的文本中没有{piece}）。请选择能显示{them}的模板。",
    ),
    "template_leaves": (
        "The chat template leaves out {piece} (turn {numbers}): it is not trained.",
        "对话模板略去了{piece}（第 {numbers} 轮）：它不参与训练。",
    ),
    "row_nested_template": (
        "the row is nested too deeply for the chat template.",
        "数据行嵌套过深，对话模板无法处理。",
    ),
    "row_too_long": (
        "it has {tokens:,} tokens, cutoff_len is {cutoff:,}: {lost:clauses}.",
        "共 {tokens:,} 个 token，cutoff_len 为 {cutoff:,}：{lost:clauses}。",
    ),
    "same_as": ("the same as {place}.", "与 {place} 相同。"),
    "in_evaluation": ("it is in the evaluation data, too ({place}).", "评估数据中也有它（{place}）。"),
    "rest_unreadable": ("{problem} The rest of the file cannot be read.", "{problem}文件其余部分无法读取。"),
    "check_line": ("{name}: {counts}.", "{name}：{counts}。"),
    "check_line_kinds": ("{name}: {counts} ({kinds}).", "{name}：{counts}（{kinds}）。"),
}
# words and clauses that become part of a sentence
PARTS = {
    "a_list": ("a list", "列表"),
    "an_object": ("an object", "对象"),
    "a_number": ("a number", "数字"),
    "true_or_false": ("true or false", "true 或 false"),
    "a_text": ("text", "文本"),
    "a_whole_number": ("a whole number", "整数"),
    "control_character": ("a control character", "控制字符"),
    "wrong_decoding": ("the sign of text that was decoded wrongly", "文本解码错误的标志"),
    "the_row_text": ("the text", "文本"),
    "turn_of_role": ("turn {number} ({role})", "第 {number} 轮（{role}）"),
    "turn_place": ("turn {number}", "第 {number} 轮"),
    "the_answer": ("the assistant's answer", "assistant 的回答"),
    "the_question": ("the question that the two answers reply to", "两个回答所对应的问题"),
    "at_beginning": ("at the beginning", "开头"),
    "after_turn": ("after a turn of the {role}", "上一轮 {role} 之后"),
    "piece_of_turn": ("{piece} of turn {turn}", "第 {turn} 轮的{piece}"),
    "and_more": ("{numbers} and more", "{numbers} 等"),
    "out_texts": ("texts", "文本"),
    "out_tools": ("tools", "工具"),
    "them_texts": ("them", "它们"),
    "them_tools": (
        "them: for models that can call tools it is auto, the model's own",
        "它们（对于会调用工具的模型，即 auto，模型自带的模板）",
    ),
    "piece_system": ("the system text", "系统提示词"),
    "piece_text": ("the text of a turn", "轮次的文本"),
    "piece_beside": ("text beside a tool call", "工具调用旁的文本"),
    "piece_thought": ("a thought", "思考内容"),
    "piece_call": ("a tool call", "工具调用"),
    "piece_result": ("a tool's result", "工具的结果"),
    "piece_tool": ("a tool's definition", "工具的定义"),
    "lost_turns": ("its first {count} turns are left out", "略去开头 {count} 轮"),
    "lost_answer_end": ("its answer loses its end", "回答的结尾被截去"),
    "lost_middle": ("its longest texts lose their middle", "最长的文本被截去中间部分"),
    "lost_tokens": ("{where} ({count} tokens in all)", "{where}（共 {count} 个 token）"),
    "check_counts": (
        "{rows:,} rows, {broken:,} broken, {noticed:,} to look at",
        "{rows:,} 行，损坏 {broken:,} 行，需查看 {noticed:,} 处",
    ),
}
