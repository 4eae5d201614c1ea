"""What the command line prints."""

SENTENCES = {
    "set_on_run": (
        "--set does not change a run that exists. Copy its run.yaml and train that.",
        "--set 不会修改已有的运行。请复制它的 run.yaml，再训练那个文件。",
    ),
    "no_runs": (
        "No runs yet in {folder}. Start one: python -m workbench train smollm2-demo",
        "{folder} 中还没有运行。开始一个：python -m workbench train smollm2-demo",
    ),
    "delete_run_sure": ("Delete {id} and all its files?", "删除 {id} 及其全部文件？"),
    "queue_empty": ("The queue is empty.", "队列为空。"),
    "file_not_text": ("{file} cannot be read as text: {problem}.", "{file}：无法作为文本读取，{problem}。"),
    "columns_unused": ("Columns that are not used: {names}.", "未使用的列：{names}。"),
    "no_row_trains": (
        "No row of {name} has anything to train on. `python -m workbench data check {name}` tells why.",
        "{name} 没有任何一行有可训练的内容。`python -m workbench data check {name}` 会说明原因。",
    ),
    "file_missing": ("There is no file {file}.", "没有文件 {file}。"),
    "layout_is": ("Its layout is {layout}.", "其格式为 {layout}。"),
    "encoding_guessed": (
        "It is not UTF-8 text and is read as {encoding}. Another: data layout {name} --encoding NAME.",
        "它不是 UTF-8 文本，按 {encoding} 读取。改用其他编码：data layout {name} --encoding NAME。",
    ),
    "rows_unread": ("{count:,} rows could not be read and are left out.", "有 {count:,} 行无法读取，已略去。"),
    "rows_of": ("{name}: {rows:,} rows.", "{name}：{rows:,} 行。"),
    "rows_left_out": ("{count:,} broken rows are left out.", "已略去 {count:,} 个损坏行。"),
    "row_is_changed": ("Row {row:,} of {name} is changed.", "{name} 的第 {row:,} 行已修改。"),
    "rows_are_left": ("{rows:,} rows of {name} are left.", "{name} 还剩 {rows:,} 行。"),
    "json_object_wanted": (
        '--{key} should be a JSON object, such as {{"prompt": "question"}}.',
        '--{key} 应为 JSON 对象，如 {{"prompt": "question"}}。',
    ),
    "delete_dataset_sure": ("Delete {name} and its file?", "删除 {name} 及其文件？"),
    "dataset_removed": ("{name} is removed.", "已移除 {name}。"),
    "samples_support": (
        "{level}: {share:.0%} of it is in the {samples} samples, which say {meanings} different things.",
        "{level}：其中 {share:.0%} 见于 {samples} 个样本，这些样本有 {meanings} 种不同说法。",
    ),
    "file_unreadable_name": (
        "{file} cannot be read: {reason}. Name a text file.",
        "{file}：无法读取，{reason}。请指定文本文件。",
    ),
    "corrections_count": (
        "{count} corrections. Train on them with dataset: {name}.",
        "共 {count} 条纠正。用 dataset: {name} 训练它们。",
    ),
    "serve_key": (
        "Serving on {host} needs --api-key, or --no-auth to let everybody in.",
        "在 {host} 上提供服务需要 --api-key；若允许任何人访问，请用 --no-auth。",
    ),
    "weight_wrong": (
        "--adapter {item}: the weight should be a number, as in RUN=0.5.",
        "--adapter {item}：权重应为数字，如 RUN=0.5。",
    ),
    "predict_interrupted": (
        "Stopped. What is answered stays; the same command goes on with the rest.",
        "已停止。已回答的行会保留；再次运行同一命令可继续其余部分。",
    ),
    "harness_interrupted": (
        "Stopped. Tasks that were not done have no results.",
        "已停止。未完成的任务没有结果。",
    ),
    "model_copied": (
        "The model alone, with no adapter merged in, is {name} in {folder}.",
        "未合并任何适配器的模型副本是 {folder} 中的 {name}。",
    ),
    "model_exported": ("The merged model is {name} in {folder}.", "合并后的模型是 {folder} 中的 {name}。"),
}
# words and clauses that become part of a sentence
PARTS = {
    "run_directory": ("Run directory: {path}", "运行目录：{path}"),
    "state_and_reason": ("{state}: {reason}", "{state}：{reason}"),
    "defaults_heading": ("# LLaMA-Factory's defaults for what was left out", "# LLaMA-Factory 对未给出选项的默认值"),
    "not_taken_over": ("Not taken over: {key} = {value} ({why})", "未导入：{key} = {value}（{why}）"),
    "import_text": ("text", "文本"),
    "for_chatting": ("# this is for chatting:\n{command}", "# 这是对话配置：\n{command}"),
    "for_exporting": ("# this is for exporting:\n{command}", "# 这是导出配置：\n{command}"),
    "warning_line": ("Warning: {warning}", "警告：{warning}"),
    "error_line": ("Error: {error}", "错误：{error}"),
    "run_line": ("{id:44} {state:9} step {step}/{total}  {reason}", "{id:44} {state:6} 第 {step}/{total} 步  {reason}"),
    "run_head": ("{id}  {state}  step {step}/{total}  {reason}", "{id}  {state}  第 {step}/{total} 步  {reason}"),
    "cache_part": (
        "The cache has no part named {names}. There are: {known}.",
        "缓存中没有名为 {names} 的部分。现有：{known}。",
    ),
    "cache_in_use": (
        "The run {id} is going and may use the cache. Wait until it ends, or stop it.",
        "运行 {id} 正在进行，可能会用到缓存。请等它结束，或停止它。",
    ),
    "cache_cleared": ("{name}: {size:.2f} GiB are free again.", "{name}：已释放 {size:.2f} GiB。"),
    "cache_total": ("{size:.2f} GiB in {folder}", "{folder} 共 {size:.2f} GiB"),
    "run_files": ("{size:.1f} MiB in {path}; checkpoints: {names}", "{path} 占 {size:.1f} MiB；检查点：{names}"),
    "tokens_trained": (
        "{text}\n--- {tokens} tokens, {trained} trained",
        "{text}\n--- {tokens} 个 token，其中训练 {trained} 个",
    ),
    "tokens_left_out": ("  … {count} tokens are left out", "  …… 略去 {count} 个 token"),
    "stats_rows": (
        "{rows:,} rows, {broken:,} broken; {training:,} training rows, {tokens:,} tokens, {share:.1%} of them trained",
        "{rows:,} 行，其中损坏 {broken:,} 行；训练行 {training:,}，token {tokens:,} 个，其中训练 {share:.1%}",
    ),
    "stats_lengths": (
        "Lengths: mean {mean:,.0f}, {middle}, longest {longest:,}",
        "长度：平均 {mean:,.0f}，{middle}，最长 {longest:,}",
    ),
    "stats_cutoff": (
        "cutoff_len {cutoff:,}: {rows:,} rows are longer ({share:.1%}), {lost:.2%} of the tokens are lost",
        "cutoff_len {cutoff:,}：超长 {rows:,} 行（{share:.1%}），丢失 {lost:.2%} 的 token",
    ),
    "time_unknown": ("known after the first run of this model", "在该模型首次运行后可知"),
    "time_as_in": ("{time} at {rate:,.0f} tokens/s as in {run}", "{time}（按 {run} 的 {rate:,.0f} token/秒）"),
    "stats_epoch": (
        "An epoch: {sequences:,} sequences, {steps:,} steps, time {time}",
        "每轮：{sequences:,} 个序列，{steps:,} 步，用时 {time}",
    ),
    "sequence_head": (
        "=== sequence {number:,} of {total:,}: {tokens:,} tokens, {trained:,} trained",
        "=== 第 {number:,} 个序列，共 {total:,} 个：{tokens:,} 个 token，其中训练 {trained:,} 个",
    ),
    "more_tokens": ("  … {count:,} more tokens", "  …… 还有 {count:,} 个 token"),
    "conversation_head": ("--- conversation {number}", "--- 对话 {number}"),
    "layout_untold": (
        "Its fields do not tell its layout. Say it: python -m workbench data layout {name} --help",
        "无法由字段判断其格式。请指定：python -m workbench data layout {name} --help",
    ),
    "verdicts": (
        "{model}: {passed} pass, {failed} fail, {varied} inconsistent",
        "{model}：通过 {passed}，失败 {failed}，不一致 {varied}",
    ),
    "probability_heading": ("adapter   base  token", "适配器     基座  token"),
}
