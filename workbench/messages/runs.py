"""Runs and jobs: their folders, states, the queue."""

SENTENCES = {
    "job_going": ("{id} is still going. Wait until it ends, or stop it.", "{id} 仍在进行。请等它结束，或停止它。"),
    "unexpected_in_log": ("{kind}: {problem}. The traceback is in {log}.", "{kind}：{problem}。错误堆栈见 {log}。"),
    "file_of_run": ("{name} cannot be read: {reason}", "{name}：无法读取，{reason}"),
    "no_run_in": ("{path} holds no run.", "{path} 中没有运行。"),
    "run_not_ended": ("The run {id} has not ended. Stop it first.", "运行 {id} 尚未结束。请先停止它。"),
    "run_not_written": (
        "The run directory cannot be written: {reason}. Check the disk, or choose another --workspace.",
        "无法写入运行目录：{reason}。请检查磁盘，或用 --workspace 另选位置。",
    ),
    "run_names": (
        "There are too many runs named {name}. Choose another run_name.",
        "名为 {name} 的运行太多。请另选 run_name。",
    ),
    "output_shared": (
        "output_dir {path} and the run {id} in {other} would share files. Choose another.",
        "output_dir {path} 会与位于 {other} 的运行 {id} 共用文件。请另选。",
    ),
    "output_going": (
        "The run in {path} is still going. Stop it first, or choose another output_dir.",
        "{path} 中的运行仍在进行。请先停止它，或另选 output_dir。",
    ),
    "output_has_run": (
        "output_dir {path} already holds a run. Choose another, or set overwrite_output_dir: true.",
        "output_dir {path} 中已有一个运行。请另选，或设置 overwrite_output_dir: true。",
    ),
    "output_not_empty": (
        "output_dir {path} exists and is not empty. Choose another, or set overwrite_output_dir: true.",
        "output_dir {path} 已存在且不为空。请另选，或设置 overwrite_output_dir: true。",
    ),
    "run_missing": (
        "There is no run '{id}'. Runs in {folder}: {names}.",
        "没有运行 '{id}'。{folder} 中的运行：{names}。",
    ),
    "run_several": (
        "Several runs match '{id}'. Runs in {folder}: {names}.",
        "有多个运行匹配 '{id}'。{folder} 中的运行：{names}。",
    ),
    "state_missing": ("state.json is missing.", "缺少 state.json。"),
    "state_values": (
        "state.json cannot be read: its values are not those of a state.",
        "state.json 无法读取：其中的值不是运行状态的值。",
    ),
    "process_gone": (
        "The process ended without saying why (machine restart, or killed).",
        "进程已结束，未说明原因（机器重启，或进程被强制结束）。",
    ),
    "host_lost": (
        "{host} has given no sign of life of it for more than {seconds:g} s. If nothing of it goes on there, resume it.",
        "主机 {host} 已超过 {seconds:g} 秒没有该运行的活动迹象。若那里已无其进程，可继续该运行。",
    ),
    "host_quiet": (
        "No sign of life from {host} for {seconds} s.",
        "主机 {host} 已有 {seconds} 秒没有活动迹象。",
    ),
    "run_going_on": (
        "The run {id} is going on {host}. Stop it first.",
        "运行 {id} 正在主机 {host} 上进行。请先停止它。",
    ),
    "lock_elsewhere": (
        "{host} gives no sign of life but still holds the lock of {id}. End its processes there, or wait until the file server lets go of the lock.",
        "主机 {host} 没有活动迹象，但仍持有 {id} 的锁。请在那里结束其进程，或等待文件服务器释放该锁。",
    ),
    "run_stop_asked": (
        "{host} is asked to stop {id}; it saves a checkpoint first. Stop it again to kill it.",
        "已请求主机 {host} 停止 {id}；它会先保存检查点。再次停止将强制结束它。",
    ),
    "run_stop_unwritten": (
        "{host} cannot be asked to stop {id}: {reason}. Stop it there, or as the user whose folder it is.",
        "无法请求主机 {host} 停止 {id}：{reason}。请在该主机上停止，或以该文件夹所属用户的身份停止。",
    ),
    "run_kill_asked": (
        "{host} is asked to kill {id}; what it learned since its last checkpoint is lost.",
        "已请求主机 {host} 强制结束 {id}；最后一个检查点之后的训练进度会丢失。",
    ),
    "queued_elsewhere": (
        "{id} waits in the queue of {host}, which starts it. To have it here, stop and resume it.",
        "{id} 在主机 {host} 的队列中等待，由该主机启动。如需改在本机，请先停止再继续。",
    ),
    "trainer_not_started": ("The trainer could not be started; the log says more.", "无法启动训练进程；详见日志。"),
    "run_ended_already": ("{id} has ended already ({state}).", "{id} 已经结束（{state}）。"),
    "taken_out": ("Taken out of the queue.", "已移出队列。"),
    "run_taken_out": ("{id} had not started; it is taken out of the queue.", "{id} 尚未开始，已移出队列。"),
    "killed_by_stop": ("The trainer was killed: Stop was pressed twice.", "训练进程已被强制结束：“停止”被按了两次。"),
    "run_killed": (
        "{id} is killed; what it learned since its last checkpoint is lost.",
        "{id} 已被强制结束；最后一个检查点之后的训练进度已丢失。",
    ),
    "run_is_stopping": ("{id} saves a checkpoint and stops.", "{id} 正在保存检查点，随后停止。"),
    "run_stopping": (
        "{id} saves a checkpoint and stops. Stop it again to kill it.",
        "{id} 将保存检查点后停止。再次停止将强制结束它。",
    ),
    "run_stops": ("{id} stops.", "{id} 正在停止。"),
    "run_going_stop": ("The run {id} is still going. Stop it first.", "运行 {id} 仍在进行。请先停止它。"),
    "checkpoint_missing": (
        "{id} has no whole checkpoint '{name}'. It has: {names}.",
        "{id} 没有完整的检查点 '{name}'。现有：{names}。",
    ),
    "run_deleted": ("{id} is deleted.", "已删除 {id}。"),
    "not_in_queue": ("{id} is not in the queue ({state}).", "{id} 不在队列中（{state}）。"),
    "place_in_queue": (
        "{id} is number {place} of {total} in the queue.",
        "{id} 在队列中排第 {place} 位，共 {total} 个。",
    ),
    "run_goes_on": ("{id} goes on from {start}.", "{id} 继续训练，起点：{start}。"),
    "run_goes_on_over": ("{id} goes on over {hosts} from {start}.", "{id} 在 {hosts} 上继续训练，起点：{start}。"),
    "run_waits": ("{id} waits in the queue to go on from {start}.", "{id} 在队列中等待继续，起点：{start}。"),
    "stopped": ("Stopped.", "已停止。"),
}
# words and clauses that become part of a sentence
PARTS = {
    "none_yet": ("none yet", "暂无"),
    "the_beginning": ("the beginning (it has no whole checkpoint)", "从头开始（没有完整的检查点）"),
    "state_queued": ("queued", "排队中"),
    "state_starting": ("starting", "启动中"),
    "state_running": ("running", "运行中"),
    "state_stopping": ("stopping", "停止中"),
    "state_stopped": ("stopped", "已停止"),
    "state_finished": ("finished", "已完成"),
    "state_failed": ("failed", "失败"),
    "state_lost": ("lost", "丢失"),
    "value_missing": ("missing", "缺失"),
}
