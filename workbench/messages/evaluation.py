"""Predictions, their scores, and tasks of lm-evaluation-harness."""

SENTENCES = {
    "row_plain_text": (
        "The row is plain text without a question: there is nothing to answer.",
        "该行是没有问题的纯文本：没有可回答的内容。",
    ),
    "predict_no_dataset": (
        "Name the dataset that is to be answered: --dataset, or eval_dataset in a run config.",
        "请指定要回答的数据集：--dataset，或运行配置中的 eval_dataset。",
    ),
    "predict_none_askable": (
        "None of the {count:,} rows can be asked. The first, {place}: {reason}",
        "{count:,} 行都无法提问。第一行 {place}：{reason}",
    ),
    "predict_other_engine": (
        "Predictions are made by the workbench's own engine. Leave engine and engine_url out.",
        "预测由工作台自己的引擎完成。请去掉 engine 和 engine_url。",
    ),
    "predict_folder_taken": (
        "{folder} holds something else than predictions. Choose another folder.",
        "{folder} 中有预测以外的内容。请另选文件夹。",
    ),
    "predict_folder_busy": (
        "Somebody is writing predictions into {folder}. Wait until that ends, or stop it.",
        "有程序正在向 {folder} 写入预测。请等它结束，或停止它。",
    ),
    "predict_disk_full": (
        "The disk is full. {done:,} answers are kept; free some space and start again to go on.",
        "磁盘已满。已保留 {done:,} 个回答；请清理空间后重新开始以继续。",
    ),
    "predict_engine_failed": (
        "The engine failed while it answered ({problem}). {done:,} answers are kept; start again to go on.",
        "引擎在回答时出错（{problem}）。已保留 {done:,} 个回答；重新开始即可继续。",
    ),
    "predict_done": (
        "{count:,} rows answered. {notes:sentences} The answers are in {file}.",
        "已回答 {count:,} 行。{notes:sentences}回答在 {file} 中。",
    ),
    "predict_scores": (
        "BLEU-4 {bleu:.2f}, ROUGE-1 {one:.2f}, ROUGE-2 {two:.2f}, ROUGE-L {long:.2f}, exact {exact:.2f} %.",
        "BLEU-4 {bleu:.2f}，ROUGE-1 {one:.2f}，ROUGE-2 {two:.2f}，ROUGE-L {long:.2f}，完全一致 {exact:.2f} %。",
    ),
    "predict_no_labels": (
        "The rows have no answers to compare with, so there are no scores.",
        "数据行没有可比较的答案，因此没有分数。",
    ),
    "predict_some_labels": ("{count:,} rows have no label and no score.", "{count:,} 行没有标签，不计分。"),
    "predict_refused": (
        "{count:,} rows could not be asked; the file says why.",
        "{count:,} 行无法提问，原因见文件。",
    ),
    "predict_cut": (
        "{count:,} answers ended at max_new_tokens.",
        "{count:,} 个回答因达到 max_new_tokens 而结束。",
    ),
    "predict_run_empty": (
        "{id} has neither an adapter nor a model yet. Choose a run or a checkpoint that has.",
        "{id} 尚无适配器或模型。请选择已有适配器或模型的运行或检查点。",
    ),
    "compare_option": (
        "--show is one of {shown}; --sort is one of {orders}.",
        "--show 可为 {shown}；--sort 可为 {orders}。",
    ),
    "compare_none": (
        "There are no predictions of {name}. There are: {known}.",
        "没有 {name} 的预测。现有：{known}。",
    ),
    "compare_several": (
        "{name} has several predictions. Add --dataset, or name one of: {known}.",
        "{name} 有多个预测。请加上 --dataset，或从中指定一个：{known}。",
    ),
    "compare_counts": (
        "{rows:,} rows: {better:,} better, {worse:,} worse, {same:,} the same score; {words:,} in the same words.",
        "共 {rows:,} 行：{better:,} 行变好，{worse:,} 行变差，{same:,} 行得分相同；{words:,} 行措辞相同。",
    ),
    "compare_other_rows": (
        "These two are of different rows: their labels are not the same. Choose predictions of one dataset.",
        "这两者的数据行不同：标签不一致。请选择同一数据集的预测。",
    ),
    "predict_after_failed": (
        "The training has finished; the predictions have not: {reason} Resume the run to go on with them.",
        "训练已完成，预测未完成：{reason} 恢复该运行即可继续预测。",
    ),
    "predict_needs_dataset": (
        "do_predict answers eval_dataset, which is empty. Name one.",
        "do_predict 会回答 eval_dataset，但它为空。请指定一个。",
    ),
    "predict_stopped": (
        "Stopped while predicting. {done:,} answers are kept; Resume goes on from there.",
        "预测时停止。已保留 {done:,} 个回答；“继续”会从那里接着进行。",
    ),
    "harness_missing": (
        "lm-evaluation-harness is not installed. Install it with: {command}.",
        "未安装 lm-evaluation-harness。安装命令：{command}。",
    ),
    "harness_engine": (
        "The engine for the evaluation has ended: {reason}",
        "用于评测的引擎已结束：{reason}",
    ),
    "harness_done": (
        "{task}: {metrics}. {samples:,} rows, kept in {file}.",
        "{task}：{metrics}。{samples:,} 行，结果保存在 {file}。",
    ),
    "task_python": (
        "{file} is Python code, and tasks are read from YAML files. Put its values into one; functions need the tick that trusts the file's code (--trust-task-code).",
        "{file} 是 Python 代码，而任务从 YAML 文件读取。请把内容写成 YAML；其中的函数需要勾选“信任任务代码”（--trust-task-code）。",
    ),
    "task_not_yaml": (
        "{name} is not a YAML file. Name the file of a task of lm-evaluation-harness, such as my_task.yaml.",
        "{name} 不是 YAML 文件。请指定 lm-evaluation-harness 的任务文件，如 my_task.yaml。",
    ),
    "task_group": (
        "{file} names a group of tasks. Give the files of its tasks one by one.",
        "{file} 是一组任务。请逐个给出各任务的文件。",
    ),
    "task_no_name": ("{file} has no task: NAME. Add one.", "{file} 缺少 task: 名称。请添加。"),
    "task_includes": (
        "{file} is included in a circle, or through too many files.",
        "{file} 被循环包含，或包含的层数过多。",
    ),
    "task_function": (
        "{file} uses !function, which runs Python code. Only for a file that you trust: --trust-task-code, or the tick on the page.",
        "{file} 使用了 !function，会执行 Python 代码。仅在信任该文件时使用 --trust-task-code 或勾选页面上的选项。",
    ),
    "task_tag": (
        "{file} has the YAML tag {tag}, which is not read.",
        "{file} 含有 YAML 标签 {tag}，不予读取。",
    ),
    "task_code": (
        "{file} sets {key}, which runs code. Only for a file that you trust: --trust-task-code, or the tick on the page.",
        "{file} 设置了 {key}，会执行代码。仅在信任该文件时使用 --trust-task-code 或勾选页面上的选项。",
    ),
    "task_metric": (
        "{file} asks for the metric {metric}, which is code from elsewhere. Here are: {known}. Others need --trust-task-code.",
        "{file} 使用的指标 {metric} 是外部代码。此处有：{known}。其他指标需要 --trust-task-code。",
    ),
    "task_hub": (
        "The data of {file} are {source}, on a hub. Tasks read local files here: set dataset_path to one of {builders}, and the files in dataset_kwargs: data_files.",
        "{file} 的数据 {source} 位于 hub 上。此处的任务读取本地文件：请将 dataset_path 设为 {builders} 之一，并在 dataset_kwargs: data_files 中给出文件。",
    ),
    "task_no_files": (
        "{file} names no data. Set dataset_kwargs: data_files.",
        "{file} 没有指定数据。请设置 dataset_kwargs: data_files。",
    ),
    "task_dataset_option": (
        "{file} sets dataset_kwargs: {key}, which is not offered. Here are: {known}.",
        "{file} 设置了 dataset_kwargs: {key}，此处不提供。可用：{known}。",
    ),
    "task_remote": (
        "{file} reads {source}, which is not a file here. Download it first.",
        "{file} 读取的 {source} 不是本地文件。请先下载。",
    ),
    "task_file_missing": (
        "{file} reads {name}, which is neither beside it nor in the folder that this was started in.",
        "{file} 读取的 {name} 既不在它旁边，也不在启动本程序的文件夹中。",
    ),
    "task_unusable": ("{file} cannot be evaluated: {problem}.", "无法评测 {file}：{problem}。"),
}
PARTS = {
    "harness_going": (
        "{task}: {done:,} of {total:,} requests answered; {rate:,.0f} a minute, {left} left",
        "{task}：已回答 {done:,} / {total:,} 个请求，每分钟 {rate:,.0f} 个，剩余 {left}",
    ),
    "task_no_network": (
        "its data are on a hub that cannot be reached. Download them, and read them with dataset_path: json",
        "其数据位于无法访问的 hub。请先下载，再用 dataset_path: json 读取",
    ),
    "predict_going": (
        "Answered {done:,} of {total:,} rows; {rate:,.0f} rows a minute, {left} left",
        "已回答 {done:,} / {total:,} 行；每分钟 {rate:,.0f} 行，剩余 {left}",
    ),
    "predict_loading": ("Loading the model", "正在加载模型"),
    "predict_counting": ("Counting the rows", "正在统计行数"),
}
