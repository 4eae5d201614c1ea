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
}
PARTS = {
    "predict_going": (
        "Answered {done:,} of {total:,} rows; {rate:,.0f} rows a minute, {left} left",
        "已回答 {done:,} / {total:,} 行；每分钟 {rate:,.0f} 行，剩余 {left}",
    ),
    "predict_loading": ("Loading the model", "正在加载模型"),
    "predict_counting": ("Counting the rows", "正在统计行数"),
}
