"""What the fields of a config.json mean: field -> (meaning, what changing it does), each in English and Chinese.

`SHAPE`, `ATTENTION`, `LATENT`: the model's form and its attention.
"""

Texts = tuple[str, str, str, str]  # meaning en, zh; effect en, zh

SHAPE: dict[str, Texts] = {
    "model_type": (
        "The architecture: it decides which code reads the other fields.",
        "架构名称，决定由哪段代码解读其余字段。",
        "Another type reads the same numbers as another model; weights no longer fit.",
        "换成其他类型，同样的数字会构成另一种模型，权重不再匹配。",
    ),
    "architectures": (
        "The class that the weights were saved from.",
        "保存权重时所用的模型类。",
        "It names the class only; sizes do not depend on it.",
        "只是类名，不影响任何大小。",
    ),
    "vocab_size": (
        "How many tokens there are: rows of the embedding and of the output head.",
        "词表大小，即嵌入矩阵和输出头的行数。",
        "Each token more costs hidden_size parameters in the embedding and again in the head; a large vocabulary makes texts shorter in tokens, and the logits of a step larger.",
        "每多一个 token，嵌入和输出头各增加 hidden_size 个参数；词表大则同样的文本 token 更少，但每步的 logits 更占显存。",
    ),
    "hidden_size": (
        "Width of the vector that stands for a token on its way through the layers.",
        "隐层维度：每个 token 在各层之间传递的向量宽度。",
        "Nearly every matrix has it as a side: twice the width is about four times the parameters, and twice the activations.",
        "几乎每个矩阵都有一边是它：宽度翻倍，参数约为四倍，激活值翻倍。",
    ),
    "intermediate_size": (
        "Inner width of the feed-forward part (MLP) of a dense layer; in Mixtral, OLMoE and gpt-oss of each expert.",
        "稠密层前馈网络（MLP）的内部宽度；在 Mixtral、OLMoE、gpt-oss 中是每个专家的宽度。",
        "Three matrices of hidden_size × this per layer: most of a dense model's parameters and arithmetic.",
        "每层有三个 hidden_size × 该值的矩阵，占稠密模型参数和计算的大部分。",
    ),
    "num_hidden_layers": (
        "How many decoder layers follow one another.",
        "解码器层数。",
        "Parameters, arithmetic, KV cache and stored activations all grow in proportion; so does the time to the first token.",
        "参数、计算量、KV 缓存和保存的激活值都按比例增加，首 token 延迟也是。",
    ),
    "hidden_act": (
        "The nonlinear function in the feed-forward part (silu, gelu …).",
        "前馈网络中的非线性激活函数（silu、gelu 等）。",
        "The weights were trained for this one; with another the model answers nonsense. It costs nothing noticeable.",
        "权重是按该函数训练的，换掉后模型会胡言乱语。计算开销可忽略。",
    ),
    "hidden_activation": (
        "Gemma's name for the activation that is really used.",
        "Gemma 中实际使用的激活函数。",
        "As hidden_act.",
        "同 hidden_act。",
    ),
    "mlp_bias": (
        "Whether the feed-forward matrices have a bias.",
        "前馈网络的矩阵是否带偏置。",
        "Adds one number per output; hardly any memory.",
        "每个输出多一个数，几乎不占内存。",
    ),
    "tie_word_embeddings": (
        "Whether the output head is the embedding matrix itself.",
        "输出头是否与词嵌入共用同一矩阵。",
        "Tied saves vocab_size × hidden_size parameters, but LoRA on one would change the other.",
        "共用可省 vocab_size × hidden_size 个参数，但对其一加 LoRA 会影响另一个。",
    ),
    "rms_norm_eps": (
        "A small number under the root of the RMS norm, against division by zero.",
        "RMS 归一化根号下的小常数，防止除以零。",
        "A matter of numerical safety; the value of training should stay.",
        "只关系数值稳定，应保持训练时的值。",
    ),
    "layer_norm_eps": (
        "A small number under the root of the layer norm, against division by zero.",
        "层归一化根号下的小常数，防止除以零。",
        "The value of training should stay.",
        "应保持训练时的值。",
    ),
    "initializer_range": (
        "Standard deviation of the random numbers that the weights began with.",
        "权重随机初始化的标准差。",
        "Only matters for training from nothing; a loaded model does not use it.",
        "只在从零训练时有用，加载已有权重时不起作用。",
    ),
    "pretraining_tp": (
        "Over how many devices matrices were split in pre-training; 1: the plain product.",
        "预训练时张量并行的份数；1 表示普通矩阵乘法。",
        "More than 1 repeats the order of additions of that time, slower, for the same digits. Leave it at 1.",
        "大于 1 时按当时的加法顺序计算，更慢，只为逐位复现。保持 1 即可。",
    ),
    "num_nextn_predict_layers": (
        "Extra layers that guess a token further ahead (multi-token prediction). They lie in the files, but transformers does not load them.",
        "额外的多 token 预测（MTP）层数。它们在权重文件中，但 transformers 不加载。",
        "Counts here are without them; DeepSeek-V3's files hold 14B more because of its one.",
        "此处参数量不含它们；DeepSeek-V3 因这一层，文件多出 14B。",
    ),
    "final_logit_softcapping": (
        "The logits are bent into ± this value by a tanh.",
        "用 tanh 把 logits 压到 ± 该值之内。",
        "Trained with it, needed with it. Losses that read logits in chunks must do the same.",
        "训练时有它，使用时也必须有；分块计算损失时同样要处理。",
    ),
}
ATTENTION: dict[str, Texts] = {
    "num_attention_heads": (
        "Heads of attention per layer: how many places a token can look at for different reasons at once.",
        "每层注意力的头数：一个 token 同时能以多少种方式查看上文。",
        "With head_dim fixed, the projections of queries and output grow with it; the KV cache does so only with multi-head attention.",
        "head_dim 不变时，查询与输出投影随之变大；只有多头注意力（MHA）的 KV 缓存会随之变大。",
    ),
    "num_key_value_heads": (
        "Heads of keys and values. As many as query heads: multi-head attention (MHA); one: multi-query (MQA); between: grouped-query (GQA), where several query heads share a pair (arXiv 2305.13245).",
        "键和值的头数。与查询头数相同为多头注意力（MHA），为 1 是多查询（MQA），介于其间是分组查询（GQA）：若干查询头共用一组键值（arXiv 2305.13245）。",
        "The KV cache is proportional to it. Turning MHA weights into GQA takes the mean of each group's heads, and some training. With MLA it does not set the cache.",
        "KV 缓存与它成正比。把 MHA 权重转成 GQA 时对每组各头取平均，再略作训练。MLA 的缓存不由它决定。",
    ),
    "head_dim": (
        "Width of a head. Where it is missing: hidden_size ÷ num_attention_heads.",
        "每个头的宽度；缺省为 hidden_size ÷ num_attention_heads。",
        "Keys, values and their cache grow with it; it sets how many frequencies the rotary embedding has.",
        "键、值及其缓存随之增大，也决定旋转位置编码有多少个频率。",
    ),
    "attention_bias": (
        "Whether the projections of attention have a bias.",
        "查询、键、值和输出投影是否带偏置。",
        "A few numbers per layer; LoRA leaves them as they are.",
        "每层多几个数；LoRA 不改动它们。",
    ),
    "qkv_bias": (
        "Whether the projections of queries, keys and values have a bias.",
        "查询、键、值投影是否带偏置。",
        "As attention_bias.",
        "同 attention_bias。",
    ),
    "attention_dropout": (
        "Share of attention weights that are set to zero at random while training.",
        "训练时随机置零的注意力权重比例。",
        "Above 0 it may help against overfitting, but rows can no longer be laid end to end and flash attention is slower. Off when answering.",
        "大于 0 可能减轻过拟合，但无法再首尾相接地打包，注意力也更慢。推理时关闭。",
    ),
    "embd_pdrop": (
        "Share of embedding values set to zero at random while training.",
        "训练时随机置零的嵌入值比例。",
        "As attention_dropout; 0 in practice.",
        "同 attention_dropout，实际多为 0。",
    ),
    "resid_pdrop": (
        "Share of values set to zero at random before they are added to the residual stream, while training.",
        "训练时在残差相加前随机置零的比例。",
        "As attention_dropout; 0 in practice.",
        "同 attention_dropout，实际多为 0。",
    ),
    "sliding_window": (
        "How many tokens back a layer with a window can see.",
        "带窗口的层能看到多少个 token 之前的内容。",
        "A smaller window bounds cache and arithmetic of those layers; what lies before it reaches them only through other layers.",
        "窗口越小，这些层的缓存与计算越有界；更早的内容只能经其他层间接传来。",
    ),
    "use_sliding_window": (
        "Whether the window is used at all.",
        "是否启用滑动窗口。",
        "Off: every layer sees the whole text.",
        "关闭时每层都能看到全文。",
    ),
    "max_window_layers": (
        "From which layer on the window holds, where it is used.",
        "启用窗口时，从第几层开始使用窗口。",
        "Lower: more layers see a window only.",
        "越小，使用窗口的层越多。",
    ),
    "layer_types": (
        "For each layer whether it sees everything or a window.",
        "逐层说明是全注意力还是滑动窗口。",
        "More windows: less cache for long texts, less direct sight.",
        "窗口层越多，长文本缓存越小，但直接可见的范围也越小。",
    ),
    "sliding_window_pattern": (
        "One layer in so many sees everything, the others a window.",
        "每隔多少层有一层看全文，其余使用窗口。",
        "Higher: less cache for long texts.",
        "越大，长文本的缓存越小。",
    ),
    "attn_logit_softcapping": (
        "Attention scores are bent into ± this value by a tanh.",
        "用 tanh 把注意力分数压到 ± 该值之内。",
        "Trained with it, needed with it; few fast attention kernels can do it.",
        "训练时有它，使用时也必须有；支持它的快速注意力内核不多。",
    ),
    "query_pre_attn_scalar": (
        "Scores are divided by the root of this, instead of by that of head_dim.",
        "注意力分数除以该值的平方根，而不是 head_dim 的。",
        "Changes how sharp attention is; the value of training should stay.",
        "影响注意力的尖锐程度，应保持训练时的值。",
    ),
    "clip_qkv": (
        "Queries, keys and values are cut off at ± this value; null: not.",
        "把查询、键、值截断到 ± 该值；null 表示不截断。",
        "A guard against spikes in training.",
        "用于防止训练中的尖峰。",
    ),
    "use_qk_norm": (
        "Whether queries and keys are normalized before they meet.",
        "查询与键相乘前是否归一化。",
        "Part of the architecture; weights are trained for it.",
        "属于架构的一部分，权重按此训练。",
    ),
    "use_cache": (
        "Whether keys and values are kept for the next token.",
        "是否保留键和值供后续 token 使用。",
        "Off, each new token reads the whole text again: slow, but without a cache. Training needs none and turns it off.",
        "关闭后每个新 token 都要重读全文：慢，但不占缓存。训练不需要它，会自动关闭。",
    ),
    "cache_implementation": (
        "Which kind of cache transformers should build.",
        "transformers 应使用哪种缓存。",
        "The workbench's engine has its own paged cache and does not read it.",
        "工作台的引擎有自己的分页缓存，不读取它。",
    ),
}
LATENT: dict[str, Texts] = {
    "kv_lora_rank": (
        "MLA: width of the small vector that keys and values of all heads are made from. This, and the rotary part, is all that is cached.",
        "MLA：键值低秩压缩后的向量宽度，所有头的键和值都由它还原。缓存的只有它和旋转部分。",
        "Halved, the cache is nearly halved, and so is what the heads can tell apart. It has nothing to do with LoRA adapters.",
        "减半则缓存近乎减半，各头能区分的信息也随之减少。它与 LoRA 适配器无关。",
    ),
    "q_lora_rank": (
        "MLA: width of the small vector that queries are made from; null: they are projected at once, as in V2-Lite.",
        "MLA：查询低秩压缩的宽度；null 表示不压缩、直接投影（如 V2-Lite）。",
        "Smaller saves parameters and activations in training. It does not touch the cache. With null the LoRA target is q_proj, else q_a_proj and q_b_proj.",
        "越小，训练时参数和激活越省，不影响缓存。为 null 时 LoRA 目标是 q_proj，否则是 q_a_proj 与 q_b_proj。",
    ),
    "qk_rope_head_dim": (
        "MLA: dimensions of a head that carry the position. Their key is one for all heads and is cached beside the latent.",
        "MLA：每个头中携带位置信息（RoPE）的维数。其键由所有头共用，与压缩向量一起缓存。",
        "More dimensions give more frequencies and a larger cache, by as many elements per token and layer.",
        "维数越多频率越多，每 token 每层的缓存也增加同样多的元素。",
    ),
    "qk_nope_head_dim": (
        "MLA: dimensions of a head's queries and keys without position (no RoPE); their keys are made from the latent.",
        "MLA：每个头的查询和键中不带位置信息的维数，其键由压缩向量还原。",
        "Arithmetic of the scores and the size of kv_b_proj grow with it; the cache does not.",
        "注意力计算量和 kv_b_proj 随之变大，缓存不变。",
    ),
    "v_head_dim": (
        "MLA: width of a head's values.",
        "MLA：每个头的值的宽度。",
        "kv_b_proj and o_proj grow with it; the cache does not.",
        "kv_b_proj 与 o_proj 随之变大，缓存不变。",
    ),
    "qk_head_dim": (
        "MLA: width of a head's queries, qk_nope_head_dim + qk_rope_head_dim.",
        "MLA：每个头查询的宽度，即 qk_nope_head_dim + qk_rope_head_dim。",
        "Follows from the two.",
        "由上述两者得出。",
    ),
}
