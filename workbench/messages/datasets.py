"""Datasets: their entries, where they lie, changes to them."""

SENTENCES = {
    "streaming_held_out": (
        "val_size {count} leaves no rows to train on: there are {rows} or few more. Lower it.",
        "val_size {count} 使训练数据为空：只有约 {rows} 行。请调小。",
    ),
    "streaming_broken": (
        "{name} has a broken row: {first} Correct it, or set skip_broken_rows: true to train on the others.",
        "{name} 有损坏的行：{first} 请修正，或设置 skip_broken_rows: true 以使用其余行。",
    ),
    "streaming_nothing": (
        "{name} has no row to train on. Look at its rows in the Data tab.",
        "{name} 没有可训练的行。请在“数据”页查看。",
    ),
    "tokenized_unreadable": (
        "tokenized_path: {folder} cannot be read: {problem} Delete it to have it made again, or name another folder.",
        "tokenized_path：无法读取 {folder}：{problem}请删除以重新生成，或指定其他文件夹。",
    ),
    "tokenized_empty": (
        "tokenized_path: {folder} holds no training rows. Delete it to have it made again, or name another folder.",
        "tokenized_path：{folder} 中没有训练数据。请删除以重新生成，或指定其他文件夹。",
    ),
    "tokenized_columns": (
        "tokenized_path: {folder} has no column {missing}; it has {columns}. Name a folder of tokenized rows.",
        "tokenized_path：{folder} 缺少列 {missing}；现有 {columns}。请指定已分词数据的文件夹。",
    ),
    "tokenized_packed": (
        "tokenized_path: the rows of {folder} are packed. Tokenize them without packing; the run packs them itself.",
        "tokenized_path：{folder} 中的数据已打包。请在不打包的情况下分词；运行时会自行打包。",
    ),
    "tokenized_lengths": (
        "tokenized_path: {folder} has rows with more tokens than labels, or fewer. Delete it to have it made again.",
        "tokenized_path：{folder} 中有 token 数与标签数不等的行。请删除以重新生成。",
    ),
    "tokenized_vocabulary": (
        "tokenized_path: {folder} has tokens outside of the model's vocabulary of {count:,}: it was made with another tokenizer. Name another folder.",
        "tokenized_path：{folder} 中有超出模型词表（{count:,}）的 token：由其他分词器生成。请指定其他文件夹。",
    ),
    "tokenized_unwritten": (
        "tokenized_path: {folder} cannot be written: {reason}. Name another folder, or make room.",
        "tokenized_path：无法写入 {folder}：{reason}。请指定其他文件夹，或腾出空间。",
    ),
    "tokenized_missing": (
        "There are no tokenized rows in {folder}, and no dataset to make them of. Set dataset.",
        "{folder} 中没有已分词数据，也没有可用于生成的数据集。请设置 dataset。",
    ),
    "passages_need_text": (
        "{name} is laid out as {layout}. Questions are asked about documents: a .docx or .txt file, or rows with a text.",
        "{name} 的格式为 {layout}。提问需要文档：.docx 或 .txt 文件，或只含文本的样本。",
    ),
    "pair_incomplete": ("A pair needs a question and an answer.", "一对样本需要问题和答案。"),
    "layout_unknown": (
        "Dataset {name}: the layout of its rows is not known; they have the fields {fields}. Give its entry in dataset_info.json a formatting (alpaca, sharegpt, openai, prompt_completion, text) and columns.",
        "数据集 {name}：无法判断其数据行的格式；字段有 {fields}。请在 dataset_info.json 的条目中给出 formatting（alpaca、sharegpt、openai、prompt_completion、text）和 columns。",
    ),
    "dataset_link": (
        "Dataset {name}: {file} is a link that leads out of the workspace. Copy the file there instead.",
        "数据集 {name}：{file} 是指向工作区之外的链接。请改为把文件本身复制到工作区。",
    ),
    "hub_name_taken": (
        "Dataset {name}: there is a file or folder {file} here. Name it as file_name in dataset_info.json.",
        "数据集 {name}：此处有名为 {file} 的文件或文件夹。请在 dataset_info.json 中将它写为 file_name。",
    ),
    "dataset_problem": ("Dataset {name}: {problem}", "数据集 {name}：{problem}"),
    "dataset_on_hub": ("Dataset {name} lies on a hub, not in a file.", "数据集 {name} 在 hub 上，不是文件。"),
    "registry_missing": (
        "{folder} has no dataset_info.json. Write one as docs/datasets.md describes, or set dataset_dir.",
        "{folder} 中没有 dataset_info.json。请按 docs/datasets.md 的说明编写，或设置 dataset_dir。",
    ),
    "registry_too_large": (
        "{file} names {count:,} datasets; at most {most:,} are read.",
        "{file} 列出了 {count:,} 个数据集，最多读取 {most:,} 个。",
    ),
    "entry_not_object": (
        "its entry in dataset_info.json should be an object.",
        "它在 dataset_info.json 中的条目应为对象。",
    ),
    "entry_type": ("{key} should be {kind} in dataset_info.json.", "dataset_info.json 中的 {key} 应为：{kind}。"),
    "entry_inner_text": (
        "{key}: {inner} should be text in dataset_info.json.",
        "dataset_info.json 中 {key} 的 {inner} 应为文本。",
    ),
    "entry_formatting": (
        "formatting '{value}' is unknown. It can be {known}.",
        "未知的 formatting '{value}'。可为 {known}。",
    ),
    "entry_encoding": (
        "encoding '{value}' is unknown. It can be {known}.",
        "未知的 encoding '{value}'。可为 {known}。",
    ),
    "entry_samples": ("num_samples should be at least 1.", "num_samples 至少应为 1。"),
    "entry_hub_name": (
        "{key} should be a dataset's name on the hub, such as org/name, not {value!r}.",
        "{key} 应为 hub 上的数据集名，如 org/name，而不是 {value!r}。",
    ),
    "entry_folder": (
        "folder should be one within the hub's dataset, not {value!r}.",
        "folder 应为 hub 数据集内的文件夹，而不是 {value!r}。",
    ),
    "entry_outside": (
        "file_name {file} leads out of the folder of its dataset_info.json. Move the file there, or start the page with --allow {parent}.",
        "file_name {file} 指向 dataset_info.json 所在文件夹之外。请将文件移入，或启动页面时加上 --allow {parent}。",
    ),
    "entry_file_missing": (
        "the file {path} does not exist. Put it there, or correct file_name in dataset_info.json.",
        "文件 {path} 不存在。请放到该处，或修正 dataset_info.json 中的 file_name。",
    ),
    "entry_file_name": ("file_name cannot be a file's name: {problem}.", "file_name 不是可用的文件名：{problem}。"),
    "entry_not_supported": (
        "{key} is not supported; download it and give its file_name.",
        "不支持 {key}；请下载后给出其 file_name。",
    ),
    "entry_names_nothing": (
        "its entry names no file_name, hf_hub_url or ms_hub_url.",
        "它的条目没有给出 file_name、hf_hub_url 或 ms_hub_url。",
    ),
    "entry_names_guesses": (
        "its entry names no file_name, hf_hub_url or ms_hub_url. {guesses:sentences}",
        "它的条目没有给出 file_name、hf_hub_url 或 ms_hub_url。{guesses:sentences}",
    ),
    "dataset_missing": (
        "There is no dataset '{name}' in {file}.{guess} It has: {known}. Or give a data file, or a hub's dataset as org/name.",
        "{file} 中没有数据集 '{name}'。{guess}其中有：{known}。也可给出数据文件，或以 org/name 形式给出 hub 上的数据集。",
    ),
    "name_hidden": (
        "{path} has the same name as a dataset of the workspace and hides it. Nothing is changed.",
        "{path} 与工作区的一个数据集同名，把它遮住了。未做任何改动。",
    ),
    "not_of_workspace": (
        "{name} is not a dataset of the workspace. Copy it there first (`python -m workbench data copy {name}`).",
        "{name} 不是工作区的数据集。请先复制到工作区（`python -m workbench data copy {name}`）。",
    ),
    "split_share": (
        "The evaluation share should be above 0, such as 0.05 or a number of rows; it is {share:g}.",
        "评估份额应大于 0，如 0.05 或一个行数；现为 {share:g}。",
    ),
    "split_leaves_nothing": (
        "{share:g} leaves nothing for one side: there are {rows:,} usable rows. Give a smaller share.",
        "{share:g} 会让一边为空：可用的有 {rows:,} 行。请调小份额。",
    ),
    "split_same_rows": (
        "Nearly all rows are the same, so that they cannot be split without the same row on both sides.",
        "几乎所有行都相同，拆分后两边必然出现相同的行，因此无法拆分。",
    ),
    "row_too_large_to_change": (
        "Row {row:,} of {name} has {size:,} MiB, which is too much to be changed here.",
        "{name} 的第 {row:,} 行有 {size:,} MiB，太大，无法在此修改。",
    ),
    "row_changed": (
        "Row {row:,} of {name} has changed since it was shown. Look at it again.",
        "{name} 的第 {row:,} 行在显示之后已改变。请重新查看。",
    ),
    "row_missing_of": ("{name} has {rows:,} rows, no row {row:,}.", "{name} 有 {rows:,} 行，没有第 {row:,} 行。"),
    "all_rows": (
        "These are all rows of {name}. Remove the dataset instead.",
        "这是 {name} 的所有行。请改为移除该数据集。",
    ),
    "dataset_changed": (
        "{name} has changed since it was shown. Look at it again.",
        "{name} 在显示之后已改变。请重新查看。",
    ),
    "dataset_changed_meanwhile": (
        "{name} was changed by somebody else meanwhile. Look at it again.",
        "{name} 期间被他人修改。请重新查看。",
    ),
    "none_usable": ("None of the first rows can be used. {reason}", "前几行都无法使用。{reason}"),
    "none_readable_as": (
        "None of the first rows can be read as {formatting}. {reason}",
        "前几行都无法按 {formatting} 读取。{reason}",
    ),
    "row_not_saved": ("Row {row:,} is not saved: {reason}", "第 {row:,} 行未保存：{reason}"),
    "value_not_json": ("not valid JSON: {problem}.", "不是有效的 JSON：{problem}。"),
    "place_not_utf8": ("not UTF-8 text.", "不是 UTF-8 文本。"),
    "rows_fixed": (
        "{place}: {reason} Rows of a file with such places cannot be changed here: correct the file, or make a copy of the dataset, which leaves them out.",
        "{place}：{reason}含有此类内容的文件，其数据行无法在此修改：请修正文件，或复制该数据集（副本会略去它们）。",
    ),
    "disk_full_data": (
        "The disk is full: {folder} has no room for the data. Free some space.",
        "磁盘已满：{folder} 没有空间存放数据。请释放一些空间。",
    ),
    "hub_dataset_missing": (
        "{where} does not exist, or is not open to everybody. Check its name, or log in with `{command} login`.",
        "{where} 不存在，或并非对所有人开放。请检查名称，或用 `{command} login` 登录。",
    ),
    "hub_dataset_subsets": (
        "{where} has several parts: give one as subset in its entry of dataset_info.json: {parts}.",
        "{where} 含有多个部分，请在 dataset_info.json 的条目中用 subset 指定一个：{parts}。",
    ),
    "hub_dataset_parts": (
        "{where} has several parts: give one as subset in its entry of dataset_info.json.",
        "{where} 含有多个部分，请在 dataset_info.json 的条目中用 subset 指定一个。",
    ),
    "hub_dataset_split": (
        "{where}: {reason} Set split in its entry of dataset_info.json.",
        "{where}：{reason} 请在 dataset_info.json 的条目中设置 split。",
    ),
    "hub_dataset_unfetched": (
        "{where} ({part}) cannot be fetched: {reason} Check the network, or set HF_ENDPOINT to a mirror. By hand: run `{command} FOLDER` where there is a network, copy the folder here, and name it as file_name in dataset_info.json.",
        "无法获取 {where}（{part}）：{reason} 请检查网络，或将 HF_ENDPOINT 设为镜像站。也可手动下载：在有网络的机器上运行 `{command} FOLDER`，将文件夹复制到本机，并在 dataset_info.json 中写为 file_name。",
    ),
    "hub_dataset_unfetched_modelscope": (
        "{where} ({part}) cannot be fetched: {reason} Check the network. By hand: run `{command} FOLDER` where there is a network, copy the folder here, and name it as file_name in dataset_info.json.",
        "无法获取 {where}（{part}）：{reason} 请检查网络。也可手动下载：在有网络的机器上运行 `{command} FOLDER`，将文件夹复制到本机，并在 dataset_info.json 中写为 file_name。",
    ),
}
# words and clauses that become part of a sentence
PARTS = {
    "typing_error": ("Is '{key}' a typing error?", "'{key}' 是否拼写有误？"),
    "none": ("none", "无"),
    "copying_rows": ("Copying {name}: {rows:,} rows", "正在复制 {name}：{rows:,} 行"),
    "reading_rows": ("Reading {name}: {rows:,} rows", "正在读取 {name}：{rows:,} 行"),
    "writing_rows": ("Writing {name}: {rows:,} rows", "正在写入 {name}：{rows:,} 行"),
}
