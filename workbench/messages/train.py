"""Training: its phases, its ends, what it stops at."""

SENTENCES = {
    "reward_not_finite": (
        "The reward model gave a score that is no finite number. Use another, or train it again with a lower learning rate.",
        "奖励模型给出了非有限数的评分。请换一个，或以更低的学习率重新训练它。",
    ),
    "asft_vocabulary": (
        "The output head of the model has {own} rows, that of the reference {other}. ASFT compares them token by token: name a ref_model with the same vocabulary.",
        "模型的输出头有 {own} 行，参考模型有 {other} 行。ASFT 逐 token 比较两者：请选用词表相同的 ref_model。",
    ),
    "sweep_form": (
        "'{line}' does not say what an option may be. Write learning_rate=1e-4,2e-4, or for random draws learning_rate=1e-5:5e-4:log.",
        "“{line}” 没有说明选项的取值。请写成 learning_rate=1e-4,2e-4；随机抽取时可写 learning_rate=1e-5:5e-4:log。",
    ),
    "sweep_own": (
        "{name} cannot be varied: each run of a sweep has its own folder and name.",
        "{name} 不能变化：扫描中的每个运行都有自己的文件夹和名称。",
    ),
    "sweep_range": (
        "{name}: '{text}' is no range. Write two numbers, the lower one first, such as 1e-5:5e-4, and :log behind them for an option above zero.",
        "{name}：“{text}” 不是范围。请写两个数，小的在前，如 1e-5:5e-4；大于零的选项可在其后加 :log。",
    ),
    "sweep_empty": (
        "Name at least one option and its values, such as learning_rate=1e-4,2e-4.",
        "请至少写出一个选项及其取值，如 learning_rate=1e-4,2e-4。",
    ),
    "sweep_twice": (
        "{name} is named twice. Put all of its values on one line.",
        "{name} 出现了两次。请把它的取值写在一行。",
    ),
    "sweep_both": (
        "A sweep is either a grid or random draws. Lists of values may stand among the random ones, too.",
        "一次扫描要么是网格，要么是随机抽取。随机抽取中也可以写取值列表。",
    ),
    "sweep_many": (
        "A sweep has 1 to {most} runs; this would be {count}. Name fewer values, or draw some of them with --random and --trials.",
        "一次扫描包含 1 到 {most} 个运行；这里会有 {count} 个。请减少取值，或用 --random 与 --trials 抽取其中一部分。",
    ),
    "sweep_member": (
        "With {changes}: {problem} Nothing was queued.",
        "当 {changes} 时：{problem}未将任何运行加入队列。",
    ),
    "sweep_runs": ("{count} runs, one after the other {time}.", "{count} 个运行，依次进行{time}。"),
    "group_stopped": (
        "{group}: {taken} taken out of the queue, {stopped} stopped while running.",
        "{group}：{taken} 个已移出队列，{stopped} 个运行中的已停止。",
    ),
    "run_going": ("The run {id} is still going.", "运行 {id} 仍在进行。"),
    "run_taken": (
        "This host gave no sign of life for a while, and {host} has taken {id} over. Its processes here are ended.",
        "本机曾有一段时间没有活动迹象，主机 {host} 已接管 {id}。本机上的相关进程已结束。",
    ),
    "nodes_form": (
        "--nodes {text!r} is no host, or is named twice. Write HOST1,HOST2:4, this host first; behind the colon the number of processes.",
        "--nodes {text!r} 不是主机，或出现了两次。请写成 HOST1,HOST2:4，本机在最前；冒号后为进程数。",
    ),
    "nodes_through": (
        "--through {name} is unknown. It can be {known}.",
        "不支持 --through {name}。可为 {known}。",
    ),
    "nodes_none": (
        "--print shows the line of each host: name them with --nodes HOST1,HOST2.",
        "--print 显示各主机的命令行：请用 --nodes HOST1,HOST2 指定主机。",
    ),
    "nodes_split": (
        "device_map: auto splits a model over the GPUs of one host and does not go with --nodes. Take one of them out.",
        "device_map: auto 会把模型切分在一台主机的多张 GPU 上，不能与 --nodes 一起使用。请去掉其中之一。",
    ),
    "nodes_devices": (
        "devices: {devices} names devices of one host. With --nodes take it out and say how many after a colon: HOST1:2,HOST2:2.",
        "devices: {devices} 指定的是一台主机的设备。使用 --nodes 时请去掉它，并在冒号后写明数量：HOST1:2,HOST2:2。",
    ),
    "node_first": (
        "--nodes: {host} is no address of this host. Run the command on the first host of the list, named so that the others reach it.",
        "--nodes：{host} 不是本机的地址。请在列表中的第一台主机上运行该命令，并使用其他主机能访问的名称。",
    ),
    "node_program": (
        "{program} is not on the PATH. Install it, or choose another way with --through.",
        "PATH 中找不到 {program}。请安装它，或用 --through 选择其他方式。",
    ),
    "node_unreached": (
        "{host} cannot be reached: {reason}. See that it can be entered without a password and has the workbench at the same place.",
        "无法连接主机 {host}：{reason}。请确认可免密登录，且工作台位于相同路径。",
    ),
    "node_silent": (
        "{host} did not answer within {seconds:g} s. See that it is up and that the workbench starts there.",
        "主机 {host} 在 {seconds:g} 秒内没有应答。请确认它已开机，且能在其上启动工作台。",
    ),
    "node_versions": (
        "{host} has other versions: {package} is {here} here and {other} there. Install the same on all hosts.",
        "主机 {host} 的软件版本不同：{package} 在本机为 {here}，在该主机为 {other}。请在所有主机上安装相同版本。",
    ),
    "node_blind": (
        "{host} does not see the workspace {folder}. Put it on a file system that all hosts mount at the same place.",
        "主机 {host} 看不到工作区 {folder}。请把它放在所有主机以相同路径挂载的文件系统上。",
    ),
    "node_slots": (
        "{host} shall have {wanted} processes but has {there} GPUs. Name fewer.",
        "主机 {host} 要运行 {wanted} 个进程，但只有 {there} 张 GPU。请减少数量。",
    ),
    "node_lost": (
        "The connection to {host} broke. Resume goes on from the last checkpoint.",
        "与主机 {host} 的连接已中断。“继续”会从最后一个检查点开始。",
    ),
    "slurm_value": (
        "--{name} {value!r} cannot stand in a batch file. Write one line, as sbatch's manual has it.",
        "--{name} {value!r} 不能写入批处理文件。请按 sbatch 手册的写法，写成一行。",
    ),
    "zero_processes": (
        "With ZeRO each process keeps its part of the optimizer's states: the checkpoint was made by {before} processes and cannot go on with {now}. Resume on as many devices.",
        "使用 ZeRO 时每个进程保存一部分优化器状态：该检查点由 {before} 个进程生成，无法用 {now} 个进程继续。请在同样多的设备上恢复。",
    ),
    "slurm_option": (
        "The page does not give {option!r} to sbatch. It can be {known}, as --NAME=VALUE; use workbench submit for others.",
        "页面不会把 {option!r} 交给 sbatch。可用的选项为 {known}，写成 --NAME=VALUE；其他选项请用 workbench submit。",
    ),
    "slurm_missing": (
        "There is no Slurm here: sbatch is not on the PATH. Submit from a login node of the cluster, or train here with `workbench train`.",
        "此处没有 Slurm：PATH 中找不到 sbatch。请在集群的登录节点提交，或用 `workbench train` 在本机训练。",
    ),
    "slurm_refused": ("{program} did not do it: {reason}.", "{program} 未能执行：{reason}。"),
    "slurm_waits": ("Waits in Slurm as job {job}.", "在 Slurm 中等待，作业号 {job}。"),
    "slurm_waiting": (
        "{id} waits in Slurm as job {job}. Stop it first.",
        "{id} 正在 Slurm 中等待（作业 {job}）。请先停止它。",
    ),
    "hosts_started": ("It trains on {hosts}.", "正在以下主机上训练：{hosts}。"),
    "slurm_submitted": ("Slurm has it as job {job}.", "已提交给 Slurm，作业号 {job}。"),
    "slurm_gone": (
        "Slurm knows nothing of job {job} any more, and it left no word. Look into slurm-{job}.log in the run's folder.",
        "Slurm 已不再知道作业 {job}，且该作业没有留下信息。请查看运行目录中的 slurm-{job}.log。",
    ),
    "slurm_ended": (
        "Slurm ended job {job}: {state} (exit code {code}). Look into slurm-{job}.log in the run's folder.",
        "Slurm 结束了作业 {job}：{state}（退出码 {code}）。请查看运行目录中的 slurm-{job}.log。",
    ),
    "slurm_cancelled": ("{id} is taken out of Slurm (job {job}).", "已将 {id} 从 Slurm 中移除（作业 {job}）。"),
    "submit_where": (
        "Say where to: --slurm. For this machine's own queue: workbench queue add.",
        "请指明提交到哪里：--slurm。加入本机队列请用：workbench queue add。",
    ),
    "trainer_killed_because": (
        "The trainer was killed: {because}; {rest}.",
        "训练进程已被强制结束：{because}；{rest}。",
    ),
    "stopped_before": ("Stopped before training began.", "在训练开始前停止。"),
    "trainer_ended_early": (
        "The trainer ended early (exit code {code}); the log says more.",
        "训练进程提前结束（退出码 {code}）；详见日志。",
    ),
    "rank_failed": (
        "Process {rank} of the training failed: {reason}",
        "训练的第 {rank} 号进程失败：{reason}",
    ),
    "ranks_not_joined": (
        "The {size} processes of the training did not find each other within {seconds:g} s ({address}). See that all of"
        " them have started and that nothing blocks this port.",
        "训练的 {size} 个进程未能在 {seconds:g} 秒内互相连接（{address}）。请确认它们均已启动，且该端口未被阻止。",
    ),
    "ranks_do_not_talk": (
        "The GPUs of the training do not reach each other: {reason}. Start with NCCL_DEBUG=INFO, which says more, or"
        " train on one GPU.",
        "参与训练的 GPU 之间无法通信：{reason}。可设置 NCCL_DEBUG=INFO 以查看更多信息，或改用单卡训练。",
    ),
    "ranks_versions": (
        "The processes of the training have different versions: {package} is {here} in process 0 and {other} in process"
        " {rank}. Install the same everywhere.",
        "训练进程的软件版本不一致：{package} 在 0 号进程为 {here}，在 {rank} 号进程为 {other}。请在各处安装相同版本。",
    ),
    "batch_not_kept": (
        "This run made steps of {rows} rows with {before} processes; {now} processes of {each} rows cannot make the same."
        " Resume with another number of devices, or change per_device_train_batch_size.",
        "该运行以 {before} 个进程、每步 {rows} 行进行训练；{now} 个进程、每个 {each} 行无法得到相同的批。请换用其他数量的设备，或调整"
        " per_device_train_batch_size。",
    ),
    "trainer_killed_signal": (
        "The trainer was killed ({signal}); the log says more. Resume goes on from the last checkpoint.",
        "训练进程已被强制结束（{signal}）；详见日志。“继续”会从最后一个检查点开始。",
    ),
    "trainer_killed_memory": (
        "The kernel killed the trainer (SIGKILL): the machine's memory was used up. Lower cutoff_len or the batch size.",
        "内核终止了训练进程（SIGKILL）：机器内存耗尽。请调小 cutoff_len 或批大小。",
    ),
    "trainer_killed": (
        "The trainer was killed (SIGKILL). If nobody did that, the machine ran out of memory: lower cutoff_len or the batch size.",
        "训练进程已被强制结束（SIGKILL）。若非人为，则是机器内存不足：请调小 cutoff_len 或批大小。",
    ),
    "loss_advice": (
        "Lower learning_rate (now {rate:g}), add warmup_steps, or look at the data; then resume from a checkpoint or start again.",
        "请调低 learning_rate（现为 {rate:g}）、增加 warmup_steps，或检查数据；然后从检查点继续，或重新开始。",
    ),
    "loss_nan": (
        "The loss is not a number since step {step}. {advice}",
        "自第 {step} 步起损失为 NaN 或无穷大。{advice}",
    ),
    "loss_diverges": (
        "The loss diverges: {loss:.2f} at step {step}, after {lowest:.2f}. {advice}",
        "损失发散：第 {step} 步为 {loss:.2f}，此前为 {lowest:.2f}。{advice}",
    ),
    "loss_nan_end": (
        "The loss is not a number at the end of training. Lower learning_rate, or look at the data.",
        "训练结束时损失为 NaN 或无穷大。请调低 learning_rate，或检查数据。",
    ),
    "disk_too_small": (
        "The disk has {free:.2f} GiB free, too little for this run ({need}). Free some space, or use another --workspace.",
        "磁盘剩余 {free:.2f} GiB，不够本次运行使用（{need}）。请释放一些空间，或换用其他 --workspace。",
    ),
    "disk_may_fill": (
        "The disk has {free:.2f} GiB free, but this run will save {need}. Set save_total_limit, or free some space.",
        "磁盘剩余 {free:.2f} GiB，而本次运行将保存 {need}。请设置 save_total_limit，或释放一些空间。",
    ),
    "nothing_left": (
        "Nothing is left to train. For more, resume with a larger num_train_epochs or max_steps.",
        "训练已全部完成。如需继续，请增大 num_train_epochs 或 max_steps 后恢复运行。",
    ),
    "disk_full_checkpoint": (
        "The disk is full: a checkpoint could not be saved. Free some space or set save_total_limit, then resume from the last checkpoint.",
        "磁盘已满：无法保存检查点。请释放一些空间或设置 save_total_limit，然后从最后一个检查点继续。",
    ),
    "gpu_memory": (
        "Out of GPU memory. Lower cutoff_len or per_device_train_batch_size (raise gradient_accumulation_steps instead), keep gradient checkpointing on, or set quantization_bit: 4.",
        "GPU 显存不足。请调小 cutoff_len 或 per_device_train_batch_size（改为增大 gradient_accumulation_steps），保持开启梯度检查点，或设置 quantization_bit: 4。",
    ),
    "gpu_memory_at_once": (
        "Out of GPU memory: {wanted} more were needed at once. Lower cutoff_len or per_device_train_batch_size (raise gradient_accumulation_steps instead), keep gradient checkpointing on, or set quantization_bit: 4.",
        "GPU 显存不足：一次还需 {wanted}。请调小 cutoff_len 或 per_device_train_batch_size（改为增大 gradient_accumulation_steps），保持开启梯度检查点，或设置 quantization_bit: 4。",
    ),
    "out_of_memory": (
        "Out of memory. Lower cutoff_len or per_device_train_batch_size.",
        "内存不足。请调小 cutoff_len 或 per_device_train_batch_size。",
    ),
    "file_gone": (
        "The file {file} is missing. Was it moved or deleted while the run was going?",
        "文件 {file} 不见了。是否在运行期间被移动或删除？",
    ),
    "unexpected_in_run_log": (
        "{kind}: {problem}. The traceback is in the log.",
        "{kind}：{problem}。错误堆栈见日志。",
    ),
    "stopped_at": ("Stopped at step {step}.", "已在第 {step} 步停止。"),
    "no_checkpoint_to_resume": (
        "resume_from_checkpoint is true, but this run has no whole checkpoint yet.",
        "resume_from_checkpoint 为 true，但该运行还没有完整的检查点。",
    ),
    "checkpoint_of_stage": (
        "resume_from_checkpoint: {path} is of stage {stage}, this run of stage {now}. To build on it, name it as adapter_name_or_path.",
        "resume_from_checkpoint：{path} 属于 {stage} 阶段，本次运行为 {now}。若要以其为基础，请填入 adapter_name_or_path。",
    ),
    "checkpoint_broken": (
        "resume_from_checkpoint: {path} is no whole checkpoint (a file is missing or cut off).",
        "resume_from_checkpoint：{path} 不是完整的检查点（缺少文件或被截断）。",
    ),
    "devices_missing": (
        "devices: {names} is not there. This machine has: {known}.",
        "devices：没有 {names}。本机有：{known}。",
    ),
    "reward_unknown": (
        "transformers has no reward model for {model}: stage rm cannot train it.",
        "transformers 没有 {model} 的奖励模型，rm 阶段无法训练。",
    ),
    "adapter_scores": (
        "{folder} is a reward model: it scores answers and gives none, so it cannot be chatted with or merged.",
        "{folder} 是奖励模型：只给回答打分，不生成回答，不能用于对话或合并。",
    ),
    "reward_pattern": (
        "reward_regex: {pattern} is no regular expression: {problem}.",
        "reward_regex：{pattern} 不是有效的正则表达式：{problem}。",
    ),
    "reward_file_missing": ("reward_file: {file} is not there.", "reward_file：{file} 不存在。"),
    "reward_file_without": (
        "reward_file: {file} has no function reward(prompts, completions, **columns).",
        "reward_file：{file} 中没有函数 reward(prompts, completions, **columns)。",
    ),
    "reward_failed": (
        "reward_file: {file} failed in line {line}: {problem}.",
        "reward_file：{file} 第 {line} 行出错：{problem}。",
    ),
    "reward_values": (
        "reward_file: {file} should return {count} finite numbers; it returned {got} values, or some that are none.",
        "reward_file：{file} 应返回 {count} 个有限的数；实际返回 {got} 个值，或其中有非有限数。",
    ),
    "balance_in_stage": (
        "moe_aux_loss_coef: in stage {stage}, the balance loss of this model's routers is not computed. Leave it empty.",
        "moe_aux_loss_coef：在 {stage} 阶段不会计算该模型的路由均衡损失。请留空。",
    ),
    "stage_unsupported": ("stage: {name} is not supported. It can be {known}.", "不支持 stage: {name}。可为 {known}。"),
    "compiled_by_size": (
        "Layers are compiled for each size of micro-batches, since for any number of tokens at once it fails: {reason}",
        "编译后的层不能接受任意 token 数，因此按每种微批大小分别编译：{reason}",
    ),
    "layers_not_compiled": (
        "Layers cannot be compiled and run from Python instead, which is slower: {reason}",
        "无法编译各层，改由 Python 运行，速度较慢：{reason}",
    ),
    "steps_not_recorded_8bit": (
        "Steps run from Python, which is slower: products of 8-bit weights cannot be recorded.",
        "训练步由 Python 执行，速度较慢：8 位权重的乘积无法录制。",
    ),
    "steps_not_recorded": (
        "Steps cannot be recorded and run from Python instead, which is slower: {reason}",
        "无法录制训练步，改由 Python 运行，速度较慢：{reason}",
    ),
    "push_offline": (
        "push_to_hub cannot upload while HF_HUB_OFFLINE is set. Unset it, or take push_to_hub out.",
        "设置了 HF_HUB_OFFLINE，push_to_hub 无法上传。请取消该变量，或去掉 push_to_hub。",
    ),
    "push_no_token": (
        "push_to_hub needs a token with write access. Set HF_TOKEN where the workbench starts, or run hf auth login there.",
        "push_to_hub 需要有写权限的令牌。请在启动工作台的环境中设置 HF_TOKEN，或在那里执行 hf auth login。",
    ),
    "push_refused": (
        "The repository {name} cannot be made on {place}: {reason} Check hub_model_id and the token, or take push_to_hub out.",
        "无法在 {place} 创建仓库 {name}：{reason}请检查 hub_model_id 与令牌，或去掉 push_to_hub。",
    ),
    "push_failed": (
        "The upload to {name} failed: {reason} What was trained is in the run's folder.",
        "上传到 {name} 失败：{reason}训练结果在运行目录中。",
    ),
    "weights_shared": (
        "The weights of the layers ({gib:.1f} GiB) are divided among {count} devices: each micro-batch has them gathered twice, which takes {seconds:.1f} s at the {rate:.1f} GB/s that were measured, and steps are not recorded. More tokens in a micro-batch (per_device_train_batch_size) make that cheaper.",
        "各层权重（{gib:.1f} GiB）分布在 {count} 个设备上：每个微批需收集两遍，按实测 {rate:.1f} GB/s 约需 {seconds:.1f} 秒，且训练步不录制。增大微批的 token 数（per_device_train_batch_size）可摊薄开销。",
    ),
    "weights_from_host": (
        "The weights of the layers ({gib:.1f} GiB) stay in host memory: each micro-batch has them copied twice, which takes {seconds:.1f} s at the {rate:.1f} GB/s that were measured, and steps are not recorded. More tokens in a step (batch size, gradient accumulation) make that cheaper.",
        "各层权重（{gib:.1f} GiB）留在主机内存：每个微批需传输两遍，按实测 {rate:.1f} GB/s 约需 {seconds:.1f} 秒，且训练步不录制。增大每步的 token 数（批大小、梯度累积）可摊薄开销。",
    ),
    "whole_in_bf16": (
        "Whole weights are trained in bfloat16 alone, as pure_bf16, a step within the backward pass or BAdam's ratio asks: steps that are smaller than its rounding are lost. Choose a larger learning_rate, or train without it: then float32 copies are kept.",
        "全部权重仅以 bfloat16 训练（由 pure_bf16、反向传播中逐层更新或 BAdam 的 ratio 模式要求）：小于其舍入误差的更新会丢失。请使用更大的 learning_rate，或去掉该选项，届时会保留 float32 副本。",
    ),
    "steps_plain": (
        "Steps run as transformers makes them, which is slower: {why}.",
        "训练步使用 transformers 自身的实现，速度较慢：{why}。",
    ),
    "rows_padded": (
        "Rows are padded and not laid end to end, which is slower: {why}.",
        "数据行采用填充而非首尾拼接，速度较慢：{why}。",
    ),
}
# words and clauses that become part of a sentence
PARTS = {
    "exit_code": ("exit code {code}", "退出码 {code}"),
    "slurm_silent": ("it did not answer within {seconds:g} s", "{seconds:g} 秒内没有回应"),
    "slurm_unclear": ("it printed no job number but {text!r}", "它没有输出作业号，而是 {text!r}"),
    "sweep_time_unknown": ("for a time that cannot be told yet", "时间尚无法估计"),
    "sweep_minutes": ("for about {count} minutes", "约 {count} 分钟"),
    "sweep_hours": ("for about {count:.1f} hours", "约 {count:.1f} 小时"),
    "stop_twice": ("Stop was pressed twice", "“停止”被按了两次"),
    "stop_unanswered": ("it did not answer to Stop within {seconds:g} s", "{seconds:g} 秒内没有响应“停止”"),
    "no_checkpoint": ("it has no checkpoint", "没有检查点"),
    "last_checkpoint": ("its last checkpoint is {name}", "最后的检查点是 {name}"),
    "checkpoints_need": ("{count} checkpoints of {size:.2f} GiB each", "{count} 个检查点，每个 {size:.2f} GiB"),
    "starting": ("Starting", "正在启动"),
    "uploading": ("Uploading", "正在上传"),
    "saving": ("Saving", "正在保存"),
    "plain_layerwise": (
        "the optimizer makes each layer's step within the backward pass",
        "优化器在反向传播中逐层更新",
    ),
    "plain_streaming": ("rows are read while the run trains", "训练时才读取数据行"),
    "plain_grpo": ("stage grpo writes answers in every step", "grpo 阶段每一步都要生成回答"),
    "job_waits": ("waits for {ids}", "等待 {ids}"),
    "job_waits_device": ("waits for a free device", "等待空闲设备"),
    "plain_zero": ("DeepSpeed makes its steps", "由 DeepSpeed 执行训练步"),
    "plain_asft": ("each step of the ASFT loss asks the reference, too", "ASFT 损失的每一步还要计算参考模型"),
    "plain_badam": ("BAdam changes which layers are trained", "BAdam 会切换所训练的层"),
    "padded_neftune": (
        "the noise of neftune_noise_alpha depends on how rows are padded",
        "neftune_noise_alpha 的噪声取决于行的填充方式",
    ),
    "padded_aux_loss": (
        "moe_aux_loss_coef is computed by transformers for this model, over batches of padded rows",
        "对该模型，moe_aux_loss_coef 由 transformers 在填充后的批上计算",
    ),
    "no_answer": ("there was no answer within {seconds:g} s", "{seconds:g} 秒内没有应答"),
    "padded_ranks": ("several processes, and rows are padded since {why}", "多进程训练，且数据行采用填充：{why}"),
    "model_split": ("the model is split over several GPUs", "模型切分在多张 GPU 上"),
}
