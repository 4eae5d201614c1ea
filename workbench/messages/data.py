"""Reading data: files, tables, workers, what a run makes of them."""

SENTENCES = {
    "kind_unknown": (
        "{name}: files of this kind cannot be read. It can be .json, .jsonl, .csv, .tsv, .txt, .xlsx, .docx, .parquet or .arrow, the text ones also gzipped (.gz), or a folder of them.",
        "{name}：无法读取这类文件。可用 .json、.jsonl、.csv、.tsv、.txt、.xlsx、.docx、.parquet 或 .arrow，文本类也可用 gzip 压缩（.gz），或由它们组成的文件夹。",
    ),
    "folder_without_data": (
        "The folder {folder} has no data file (.json, .jsonl, .csv, .tsv, .txt, .xlsx, .docx, .parquet, .arrow).",
        "文件夹 {folder} 中没有数据文件（.json、.jsonl、.csv、.tsv、.txt、.xlsx、.docx、.parquet、.arrow）。",
    ),
    "gzip_of_compressed": (
        "{name}: unpack it first; files of this kind are compressed within.",
        "{name}：请先解压；这类文件内部已经压缩。",
    ),
    "file_unreadable": ("{path} cannot be read: {reason}.", "{path}：无法读取，{reason}。"),
    "gzip_too_large": (
        "{name} unpacks to more than {most:,} MiB, over {ratio} times its size. If that is right, unpack it first.",
        "{name}：解压后超过 {most:,} MiB，是其大小的 {ratio} 倍以上。若确实如此，请先解压。",
    ),
    "too_many_names": (
        "{place}: the first line names {count:,} fields; at most {most:,} are read.",
        "{place}：首行列出了 {count:,} 个字段，最多读取 {most:,} 个。",
    ),
    "name_twice": (
        "{place}: the field {name!r} is named twice in the first line.",
        "{place}：首行中字段 {name!r} 出现了两次。",
    ),
    "line_too_long": (
        "{name} has a line of more than {most} million characters. Is it a CSV file?",
        "{name}：有一行超过 {most} 百万字符。它是 CSV 文件吗？",
    ),
    "too_many_columns": (
        "{name} has {count:,} columns; at most {most:,} are read.",
        "{name}：有 {count:,} 列，最多读取 {most:,} 列。",
    ),
    "not_utf8_but": (
        "{name} is not UTF-8 text. It looks like {guess}. Set encoding: {encoding} in its layout (or in dataset_info.json), or save the file as UTF-8.",
        "{name}：不是 UTF-8 文本，看起来是 {guess}。请在其格式（或 dataset_info.json）中设置 encoding: {encoding}，或将文件存为 UTF-8。",
    ),
    "wrong_encoding": (
        "{name} is not text in {encoding}: {problem}. Choose another encoding.",
        "{name}：不是 {encoding} 编码的文本（{problem}）。请选择其他编码。",
    ),
    "document_broken": (
        "{name} cannot be read as a Word document: {reason}. Save it anew as .docx, or as text.",
        "{name}：无法作为 Word 文档读取，{reason}。请重新存为 .docx 或纯文本。",
    ),
    "document_not_docx": (
        "{name} is no Word document of the kind .docx ({problem}). Save it as .docx or text.",
        "{name}：不是 .docx 类型的 Word 文档（{problem}）。请存为 .docx 或纯文本。",
    ),
    "document_too_large": (
        "{name} unpacks to {size} MiB in {parts} parts, {text} MiB of them text; up to {most} MiB and {most_text} MiB are read. Save its text as .txt.",
        "{name} 解压后为 {size} MiB（{parts} 个部分），其中文本 {text} MiB；最多读取 {most} MiB 与 {most_text} MiB。请将文本存为 .txt。",
    ),
    "sheet_empty": ("{name} has no sheet with cells.", "{name}：没有含单元格的工作表。"),
    "sheet_too_long": ("{name} has more than {most:,} rows. Save it as CSV.", "{name}：超过 {most:,} 行。请存为 CSV。"),
    "sheet_broken": (
        "{name} cannot be read as an Excel workbook: {reason}.",
        "{name}：无法作为 Excel 工作簿读取，{reason}。",
    ),
    "sheet_not_xlsx": (
        "{name} is no Excel workbook of the kind .xlsx ({problem}). Save it as .xlsx or CSV.",
        "{name}：不是 .xlsx 类型的 Excel 工作簿（{problem}）。请存为 .xlsx 或 CSV。",
    ),
    "sheet_too_large": (
        "{name} unpacks to {size:,} MiB in {parts:,} parts; at most {most} MiB are read. Save it as CSV.",
        "{name}：解压后有 {size:,} MiB、{parts:,} 个部分，最多读取 {most} MiB。请存为 CSV。",
    ),
    "reader_killed_workers": (
        "A process that reads the data was killed, probably for want of memory. Set preprocessing_num_workers: 1 and try again.",
        "读取数据的进程被系统终止，可能是内存不足。请设置 preprocessing_num_workers: 1 后重试。",
    ),
    "shares_for_datasets": (
        "interleave_probs names {shares} shares for {datasets} datasets. Give one for each.",
        "interleave_probs 给出了 {shares} 个比例，但有 {datasets} 个数据集。请为每个数据集各给一个。",
    ),
    "val_size_leaves": (
        "val_size {val_size:g} leaves {training:,} training and {evaluation:,} evaluation rows of {rows:,}. Set it lower (the form's Validation share), or to 0.",
        "val_size {val_size:g} 会从 {rows:,} 行中留下 {training:,} 行训练、{evaluation:,} 行评估。请调小（表单中的“验证集占比”），或设为 0。",
    ),
    "first_row_broken": (
        "{place}: {reason} Correct it (`python -m workbench data check {name}` lists every such row), or set skip_broken_rows: true.",
        "{place}：{reason}请修正（`python -m workbench data check {name}` 会列出所有这样的行），或设置 skip_broken_rows: true。",
    ),
    "no_first_row_usable": (
        "None of the first {count:,} rows of {name} can be used. `python -m workbench data check {name}` tells why.",
        "{name} 的前 {count:,} 行都无法使用。`python -m workbench data check {name}` 会说明原因。",
    ),
    "reporter_missing": (
        "report_to: {name} is not installed. Run: pip install {name}, or set report_to: none.",
        "report_to：未安装 {name}。请运行：pip install {name}，或设置 report_to: none。",
    ),
    "template_unknown": (
        "There is no template '{name}'. It can be auto (the model's own), {names}.",
        "没有模板 '{name}'。可为 auto（模型自带）、{names}。",
    ),
    "disk_full_tokens": (
        "The disk is full: the tokens of {name} cannot be kept in {folder}. Free some space.",
        "磁盘已满：无法在 {folder} 中保存 {name} 的 token。请释放一些空间。",
    ),
    "dataset_no_pairs": (
        "{name} holds no preference pairs, which stage {stage} learns from: rows with a chosen and a rejected answer.",
        "{name} 不含偏好对；{stage} 阶段需要含 chosen 与 rejected 回答的数据行。",
    ),
    "dataset_no_labels": (
        "{name} does not say which answers are wanted, which stage {stage} learns from: rows with a label (kto_tag), or preference pairs.",
        "{name} 未说明哪些回答可取；{stage} 阶段需要含标签（kto_tag）的数据行或偏好对。",
    ),
    "one_label": (
        "All answers are labeled {label}. KTO learns from wanted and unwanted answers: add rows of the other kind.",
        "所有回答的标签都是 {label}。KTO 需要可取与不可取两类回答：请加入另一类数据行。",
    ),
    "nothing_to_train": (
        "No row of the dataset has anything to train on. `python -m workbench data check` tells why.",
        "数据集中没有任何一行有可训练的内容。`python -m workbench data check` 会说明原因。",
    ),
    "dataset_no_rows": ("{name} has no rows.", "{name} 没有数据行。"),
    "row_missing": ("{name} has no row {row:,}.", "{name} 没有第 {row:,} 行。"),
    "row_too_large_to_edit": (
        "Row {row:,} has {size:.0f} MiB, which is too much to be edited here. Download the dataset.",
        "第 {row:,} 行有 {size:.0f} MiB，太大，无法在此编辑。请下载该数据集。",
    ),
    "not_an_upload": ("{name} is not an upload. Send the file again.", "{name} 不是上传的文件。请重新发送。"),
    "one_dataset": ("'{names}' names {count} datasets. Choose one.", "'{names}' 包含 {count} 个数据集。请只选一个。"),
    "demo_failed": ("The demo model could not be converted: {problem}", "无法转换演示模型：{problem}"),
    "file_io": ("{file} cannot be read or written: {reason}.", "{file}：无法读写，{reason}。"),
    "unexpected": (
        "{kind}: {problem}. The traceback is on the page's console.",
        "{kind}：{problem}。错误堆栈见运行页面的终端。",
    ),
    "memory_short": (
        "There was not enough memory for this. Take a smaller part of the data, or another chat template.",
        "内存不足。请减少数据量，或换一个对话模板。",
    ),
    "memory_short_limit": (
        "There was not enough memory for this. More than {most:g} GiB would be needed. Take a smaller part of the data, or another chat template.",
        "内存不足：需要超过 {most:g} GiB。请减少数据量，或换一个对话模板。",
    ),
    "reader_killed": (
        "The process that reads the data was killed, probably for want of memory. Try again with fewer rows at a time.",
        "读取数据的进程被系统终止，可能是内存不足。请减少每次读取的行数后重试。",
    ),
    "reader_job_killed": (
        "The process that reads the data was killed, probably for want of memory. Set preprocessing_num_workers: 1 and try again.",
        "读取数据的进程被系统终止，可能是内存不足。请设置 preprocessing_num_workers: 1 后重试。",
    ),
    "reader_too_long": (
        "This took more than {seconds:.0f} s and was ended: the data, the tokenizer or its chat template may be the reason. Try fewer rows, or another template.",
        "用时超过 {seconds:.0f} 秒，已终止：原因可能在数据、分词器或其对话模板。请减少行数，或换一个模板。",
    ),
    "answer_too_large": (
        "The answer has more than {most} MiB. Look at fewer rows at a time.",
        "答复超过 {most} MiB。请减少每次查看的行数。",
    ),
    "reader_asked": (
        "The data is still being read for another question. Try again in a moment.",
        "数据仍在为另一个请求读取。请稍后重试。",
    ),
    "reader_busy": (
        "Many people look at data at the moment. Try again in a minute.",
        "目前有很多人在查看数据。请一分钟后重试。",
    ),
    "own_jobs": (
        "You have jobs going that read data. Wait for one to end, or stop it.",
        "你已有读取数据的任务在进行。请等其中一个结束，或停止它。",
    ),
    "other_jobs": (
        "Other users have jobs going that read data. Wait for one to end, or stop it.",
        "其他用户有读取数据的任务在进行。请等其中一个结束，或停止它。",
    ),
    "dataset_broken": (
        "Dataset {name} has {broken:,} broken {word} of {rows:,}. {first:sentences} Correct them (`python -m workbench data check {name}` lists all), or set skip_broken_rows: true.",
        "数据集 {name} 的 {rows:,} {word}中有 {broken:,} 行损坏。{first:sentences}请修正（`python -m workbench data check {name}` 会列出全部），或设置 skip_broken_rows: true。",
    ),
    "and_more_problems": ("And {count:,} more.", "另有 {count:,} 行。"),
}
# words and clauses that become part of a sentence
PARTS = {
    "tokenizing_rows": ("Tokenizing {name}: {rows:,} rows", "正在分词 {name}：{rows:,} 行"),
    "reference_logps": ("Scoring the answers with the reference model", "正在用参考模型为回答打分"),
    "tokenizing": ("Tokenizing", "正在分词"),
    "checking_rows": ("Checking {name}: {rows:,} rows", "正在检查 {name}：{rows:,} 行"),
    "downloading": ("Downloading {name}", "正在下载 {name}"),
    "converting_demo": ("Converting the demo model", "正在转换演示模型"),
    "downloading_tokenizer": ("Downloading the tokenizer", "正在下载分词器"),
    "a_file": ("A file", "某个文件"),
    "worker_answer": ("The worker's answer", "工作进程的答复"),
    "word_row": ("row", "行"),
    "word_rows": ("rows", "行"),
}
