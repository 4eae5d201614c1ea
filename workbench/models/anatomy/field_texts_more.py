"""What the other fields of a config.json mean: mixtures of experts, position, tokens, files. As `field_texts`."""

from workbench.models.anatomy.field_texts import Texts

EXPERTS: dict[str, Texts] = {
    "n_routed_experts": (
        "Experts in a mixture layer of which the router chooses a few per token. null: a dense model.",
        "混合专家层中由路由器挑选的专家数。null 表示稠密模型。",
        "Memory grows with it, the arithmetic of a token does not: total parameters rise, active ones stay.",
        "显存随之增长，而每个 token 的计算量不变：总参数增加，激活参数不变。",
    ),
    "num_experts": (
        "Experts in a mixture layer of which the router chooses a few per token.",
        "混合专家层中由路由器挑选的专家数。",
        "As n_routed_experts: memory grows, the arithmetic of a token does not.",
        "同 n_routed_experts：显存增长，每个 token 的计算量不变。",
    ),
    "num_local_experts": (
        "Experts in a mixture layer of which the router chooses a few per token (the name in Mixtral and gpt-oss).",
        "混合专家层中由路由器挑选的专家数（Mixtral、gpt-oss 的叫法）。",
        "As n_routed_experts.",
        "同 n_routed_experts。",
    ),
    "n_shared_experts": (
        "Experts that every token goes through beside the chosen ones; they are one MLP of so many times the width. null: none.",
        "所有 token 都会经过的共享专家数，实现为一个宽度为其倍数的 MLP。null 表示没有。",
        "More of them: more arithmetic for every token, and common knowledge need not be learned by each expert again.",
        "越多，每个 token 的计算越多，公共知识就不必由各专家重复学习。",
    ),
    "num_experts_per_tok": (
        "How many routed experts a token is sent to. null: a dense model.",
        "每个 token 选用的路由专家数。null 表示稠密模型。",
        "Active parameters and arithmetic grow in proportion, memory for weights does not. The model is trained for this number.",
        "激活参数与计算量成比例增长，权重显存不变。模型按此数训练。",
    ),
    "experts_per_token": (
        "Another name for num_experts_per_tok.",
        "num_experts_per_tok 的另一名称。",
        "As there.",
        "同上。",
    ),
    "moe_intermediate_size": (
        "Inner width of each expert.",
        "每个专家（MoE）的内部宽度。",
        "Narrow experts in large number (DeepSeek) specialise more finely than few wide ones (Mixtral) for the same arithmetic.",
        "计算量相同时，大量窄专家（DeepSeek）比少量宽专家（Mixtral）分工更细。",
    ),
    "shared_expert_intermediate_size": (
        "Inner width of the shared expert.",
        "共享专家的内部宽度。",
        "More arithmetic for every token.",
        "每个 token 的计算随之增加。",
    ),
    "first_k_dense_replace": (
        "The first so many layers are dense (one MLP of intermediate_size): embedding → dense → … → mixture → … → head.",
        "最前面的稠密层数（使用 intermediate_size 的 MLP）：embed → dense → … → moe → … → lm_head。",
        "Low layers route badly, as their inputs are hardly told apart yet; 1 to 3 dense ones are usual.",
        "浅层的输入差别小、路由效果差，通常保留 1 至 3 层稠密层。",
    ),
    "moe_layer_freq": (
        "Every so many layers one holds experts; 1: all after the first dense ones.",
        "每隔多少层有一个专家层；1 表示首批稠密层之后全部是专家层。",
        "2 would halve experts and their memory. transformers does not read it for DeepSeek-V2 and V3.",
        "设为 2 会使专家及其显存减半。transformers 对 DeepSeek-V2/V3 不读取它。",
    ),
    "decoder_sparse_step": (
        "Every so many layers one holds experts (Qwen).",
        "每隔多少层有一个专家层（Qwen）。",
        "As moe_layer_freq.",
        "同 moe_layer_freq。",
    ),
    "mlp_only_layers": (
        "Numbers of layers that stay dense.",
        "保持稠密的层号。",
        "Each named layer gives up its experts for one MLP.",
        "列出的每层以一个 MLP 代替专家。",
    ),
    "topk_method": (
        "How the router chooses. greedy: the highest scores; group_limited_greedy: the best groups first, then within them; noaux_tc: the same with a bias per expert that balances the load without a loss.",
        "路由的 top-k 选择方法。greedy：取最高分；group_limited_greedy：先选组再在组内选；noaux_tc：同前，但用每个专家的偏置均衡负载，不需辅助损失。",
        "Another method sends tokens to experts that were not trained for them.",
        "换用其他方法会把 token 送到未为其训练的专家。",
    ),
    "n_group": (
        "Into how many groups the experts are put (in training: one per device). null or 1: no groups.",
        "路由专家的组数（训练时每台设备一组）。null 或 1 表示不分组。",
        "With topk_group it limits on how many devices a token's experts lie, and so the traffic between them.",
        "与 topk_group 一起限制一个 token 的专家分布在几台设备上，从而限制通信量。",
    ),
    "topk_group": (
        "From how many of the groups a token's experts may come.",
        "每个 token 可从几个组中选专家。",
        "Fewer groups mean less traffic between devices and a narrower choice.",
        "越少，设备间通信越少，选择范围也越窄。",
    ),
    "routed_scaling_factor": (
        "The sum of the routed experts is multiplied by this before it is added.",
        "路由专家输出之和的缩放因子。",
        "It makes up for gate weights that do not sum to 1 (V2: 16). Changed, routed experts weigh too much or too little beside the shared ones.",
        "用于弥补门控权重之和不为 1（V2 为 16）。改动后路由专家相对共享专家过重或过轻。",
    ),
    "norm_topk_prob": (
        "Whether the chosen experts' weights are divided by their sum.",
        "是否把选中专家的权重归一化（除以其和）。",
        "On, they sum to 1 whatever the router is sure of; off, an unsure router also adds less.",
        "开启后权重之和恒为 1；关闭时路由器越不确定，专家贡献越小。",
    ),
    "scoring_func": (
        "What turns the router's numbers into weights: softmax over all experts, or a sigmoid for each (V3).",
        "计算专家权重的方法：对所有专家做 softmax，或逐个 sigmoid（V3）。",
        "The router was trained for one of them; the other gives other weights.",
        "路由器按其中一种训练，换用另一种权重会不同。",
    ),
    "aux_loss_alpha": (
        "Weight of the loss that spreads the load over the experts while training.",
        "训练时均衡专家负载的辅助损失系数。",
        "Higher: more even load, more disturbance of the real loss. 0: nothing keeps experts from being left out. It has no part in answering. In a run: moe_aux_loss_coef.",
        "越大负载越均匀，对主损失干扰越大；0 表示不防止专家闲置。推理时不起作用。训练中对应 moe_aux_loss_coef。",
    ),
    "seq_aux": (
        "Whether that loss is counted for each text alone instead of over the whole batch.",
        "是否对每个样本单独计算该辅助损失，而不是对整个批次。",
        "On, every single text should spread its tokens, which is stricter.",
        "开启后要求每个样本各自均衡，更严格。",
    ),
    "router_aux_loss_coef": (
        "Weight of the load-balancing loss (the name in Mixtral, Qwen, OLMoE, gpt-oss).",
        "负载均衡损失的系数（Mixtral、Qwen、OLMoE、gpt-oss 的叫法）。",
        "As aux_loss_alpha; used only with output_router_logits.",
        "同 aux_loss_alpha，仅在 output_router_logits 开启时使用。",
    ),
    "output_router_logits": (
        "Whether the router's numbers are given out, so that the balance loss can be added.",
        "是否输出路由器的 logits，以便计算均衡损失。",
        "On, training adds the balance loss of transformers.",
        "开启后训练会加入 transformers 的均衡损失。",
    ),
    "router_jitter_noise": (
        "Noise on the router's input while training.",
        "训练时加到路由器输入上的噪声。",
        "A little spreads the load; 0 is usual.",
        "少量可分散负载，通常为 0。",
    ),
    "ep_size": (
        "Over how many devices the experts were spread in DeepSeek's own code.",
        "DeepSeek 自有代码中专家并行的设备数。",
        "transformers does not read it.",
        "transformers 不读取它。",
    ),
    "swiglu_limit": (
        "gpt-oss cuts the inner values of its experts off at this.",
        "gpt-oss 把专家内部的值截断到该范围。",
        "Trained with it, needed with it.",
        "训练时有它，使用时也必须有。",
    ),
}
POSITION: dict[str, Texts] = {
    "max_position_embeddings": (
        "The longest text in tokens that the model is meant for, with its own scaling of positions.",
        "模型面向的最大序列长度（token 数），已含自身的位置缩放。",
        "It reserves no memory. Larger alone does not make the model better at long texts: positions need a scaling or training. Too short, a long system prompt is cut off.",
        "它不占显存。仅仅调大并不能让模型更擅长长文本，还需位置缩放或训练。过短时较长的 system prompt 会被截断。",
    ),
    "original_max_position_embeddings": (
        "The context before it was stretched.",
        "扩展前的上下文长度。",
        "Scalings count from it.",
        "缩放以它为起点。",
    ),
    "initial_context_length": (
        "The context before it was stretched (gpt-oss's own code).",
        "扩展前的上下文长度（gpt-oss 自有代码）。",
        "transformers reads original_max_position_embeddings instead.",
        "transformers 读取的是 original_max_position_embeddings。",
    ),
    "rope_theta": (
        "Base of the rotary position embedding: the slowest pair of dimensions turns once in about 2π × this many tokens.",
        "RoPE 旋转位置编码的基数 θ：最慢的一对维度约 2π × 该值个 token 转一圈。",
        "A larger base slows all turns and leaves room for longer texts (Llama 3: 500,000; Qwen: 1,000,000), after some training.",
        "基数越大旋转越慢，能容纳更长的文本（Llama 3 为 50 万，Qwen 为 100 万），但需相应训练。",
    ),
    "rope_scaling": (
        "How positions are stretched beyond the texts of training: a type (linear, dynamic, yarn, llama3, longrope) and its factor. null: not at all.",
        "超出训练长度时如何缩放位置：类型（linear、dynamic、yarn、llama3、longrope）及其因子。null 表示不缩放。",
        "A factor of 4 aims at four times the context. linear blurs near positions, dynamic changes only for long texts, YaRN stretches only the slow dimensions. max_position_embeddings stays as it is.",
        "因子 4 即以四倍上下文为目标。linear 会模糊近处位置，dynamic 只在长文本时生效，YaRN 只拉伸慢的维度。此时不要改 max_position_embeddings。",
    ),
    "rope_parameters": (
        "Base and scaling of the rotary embedding in one place (transformers 5).",
        "旋转位置编码的基数与缩放（transformers 5 的写法）。",
        "As rope_theta and rope_scaling.",
        "同 rope_theta 与 rope_scaling。",
    ),
    "rope_local_base_freq": (
        "Base of the rotary embedding in layers with a window (Gemma 3).",
        "窗口层的 RoPE 基数（Gemma 3）。",
        "Windows are short, so it stays small.",
        "窗口较短，因此该值较小。",
    ),
    "partial_rotary_factor": (
        "Which share of a head's dimensions carries the position.",
        "每个头中参与旋转（携带位置）的维度比例。",
        "Less leaves more dimensions that compare content only.",
        "越小，只比较内容的维度越多。",
    ),
    "rope_interleaved": (
        "Whether neighbouring dimensions turn together instead of the two halves.",
        "旋转时是相邻维度成对，还是前后两半成对。",
        "It must be as in training.",
        "必须与训练时一致。",
    ),
    "rope_scaling.type": (
        "Which scaling.", "缩放类型。",
        "See rope_scaling.", "见 rope_scaling。",
    ),
    "rope_scaling.rope_type": (
        "Which scaling.", "缩放类型。",
        "See rope_scaling.", "见 rope_scaling。",
    ),
    "rope_scaling.rope_theta": (
        "Base of the rotary embedding.", "旋转位置编码的基数。",
        "See rope_theta.", "见 rope_theta。",
    ),
    "rope_scaling.factor": (
        "By how much the context is stretched.", "上下文扩展的倍数。",
        "Larger aims at longer texts and blurs more.", "越大目标长度越长，也越模糊。",
    ),
    "rope_scaling.original_max_position_embeddings": (
        "The context before it was stretched.", "扩展前的上下文长度。",
        "The scaling counts from it.", "缩放以它为起点。",
    ),
    "rope_scaling.beta_fast": (
        "YaRN: dimensions that turn more often than this in the original context are left alone.",
        "YaRN：在原始上下文内转动次数多于该值的维度保持不变。",
        "Lower leaves more dimensions alone.", "越小，保持不变的维度越多。",
    ),
    "rope_scaling.beta_slow": (
        "YaRN: dimensions that turn less often than this are stretched in full.",
        "YaRN：转动次数少于该值的维度完全拉伸。",
        "Higher stretches more dimensions in full.", "越大，完全拉伸的维度越多。",
    ),
    "rope_scaling.mscale": (
        "YaRN: how much sharper attention is made to make up for longer texts (on queries and keys).",
        "YaRN：为长文本增大注意力的尖锐程度（作用于查询和键）。",
        "DeepSeek sets both to the same value, which moves the correction into the softmax.",
        "DeepSeek 把两者设为相同，校正由此移到 softmax 中。",
    ),
    "rope_scaling.mscale_all_dim": (
        "YaRN: the same for all dimensions, in the softmax.",
        "YaRN：同上，作用于所有维度（softmax 中）。",
        "See mscale.", "见 mscale。",
    ),
    "rope_scaling.truncate": (
        "YaRN: whether the borders between the dimensions are rounded to whole ones.",
        "YaRN：维度的分界是否取整。",
        "A detail; it must be as in training.", "细节，须与训练时一致。",
    ),
    "rope_scaling.attention_factor": (
        "What queries and keys are multiplied with beside.", "查询与键额外乘上的系数。",
        "Larger makes attention sharper.", "越大注意力越尖锐。",
    ),
    "rope_scaling.short_factor": (
        "longrope: what each pair is slowed by while the text fits the original context.",
        "longrope：文本未超出原始上下文时，各维度对放慢的倍数。",
        "Found by search; not to be set by hand.", "由搜索得到，不宜手动设置。",
    ),
    "rope_scaling.long_factor": (
        "longrope: what each pair is slowed by in longer texts.",
        "longrope：文本更长时各维度对放慢的倍数。",
        "Found by search; not to be set by hand.", "由搜索得到，不宜手动设置。",
    ),
    "rope_scaling.low_freq_factor": (
        "Llama 3.1: wavelengths beyond the original context ÷ this are stretched in full.",
        "Llama 3.1：波长超过原始上下文 ÷ 该值的维度完全拉伸。",
        "Higher stretches more dimensions.", "越大，拉伸的维度越多。",
    ),
    "rope_scaling.high_freq_factor": (
        "Llama 3.1: wavelengths below the original context ÷ this are left alone.",
        "Llama 3.1：波长短于原始上下文 ÷ 该值的维度保持不变。",
        "Higher leaves fewer dimensions alone.", "越大，保持不变的维度越少。",
    ),
}  # fmt: skip
TOKENS: dict[str, Texts] = {
    "bos_token_id": (
        "Number of the token that a text begins with.",
        "文本起始 token 的编号。",
        "The tokenizer must mean the same one.",
        "须与分词器一致。",
    ),
    "eos_token_id": (
        "Number (or numbers) of the token that ends an answer.",
        "结束回答的 token 编号（可有多个）。",
        "Wrong, the model talks on until the limit.",
        "设错时模型会一直说到长度上限。",
    ),
    "pad_token_id": (
        "Number of the token that short rows are filled up with; it is masked out.",
        "用于补齐短序列的 token 编号，会被掩码忽略。",
        "null is fine: the end token is taken. It should not be one that must be learned.",
        "可为 null，此时用结束 token 代替。不应选用需要学习的 token。",
    ),
}
FILES: dict[str, Texts] = {
    "torch_dtype": (
        "In which number format the weights were saved (bfloat16: 2 bytes each).",
        "权重保存的数值格式（bfloat16 每个 2 字节）。",
        "Loading may take another (bf16, fp16, 4 bits), which sets the memory.",
        "加载时可用其他格式（bf16、fp16、4 位），显存由此决定。",
    ),
    "dtype": (
        "In which number format the weights were saved (bfloat16: 2 bytes each).",
        "权重保存的数值格式（bfloat16 每个 2 字节）。",
        "As torch_dtype.",
        "同 torch_dtype。",
    ),
    "quantization_config": (
        "How the saved weights are quantized (fp8, mxfp4 …).",
        "权重文件的量化方式（fp8、mxfp4 等）。",
        "Already quantized weights are not packed into 4 bits again; a plain checkpoint is needed for that.",
        "已量化的权重不会再打包为 4 位；需要未量化的检查点。",
    ),
    "auto_map": (
        "Names of code that comes with the model.",
        "随模型附带的代码的名称。",
        "It runs only with trust_remote_code, which the server has to allow. transformers knows DeepSeek's models without it.",
        "只有在服务器允许且 trust_remote_code 开启时才会运行。DeepSeek 模型无需它，transformers 已支持。",
    ),
    "transformers_version": (
        "The version of transformers that wrote the file.",
        "写出该文件的 transformers 版本。",
        "For information.",
        "仅供参考。",
    ),
    "_name_or_path": (
        "Where the model was loaded from when it was saved.",
        "保存时模型的来源。",
        "For information.",
        "仅供参考。",
    ),
    "is_llama_config": (
        "A mark that some training code leaves.",
        "某些训练代码留下的标记。",
        "Nothing reads it.",
        "没有代码读取它。",
    ),
    "transformers.js_config": (
        "Settings for running the model in a browser.",
        "在浏览器中运行模型的设置。",
        "Nothing reads it here.",
        "此处不读取。",
    ),
}
