"""The sizes that a `config.json` gives, checked against each other.

Nothing is guessed in silence: what cannot be used is a `problem`, and what is taken from the architecture's own default
because the config does not say it is a `note`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from workbench.messages.message import Message
from workbench.storage import files

MOST = 10_000_000  # of a size
MOST_LAYERS = 2_000
MOST_CONTEXT = 1 << 32


@dataclass(frozen=True)
class Family:
    """How an architecture of transformers lays out a decoder.

    `attention`: which projections have a bias: `no`, `config` (`attention_bias`, all four), `qkv` (always, not the
    output's), `config_qkv` (`attention_bias`, not the output's). `norms`: names of the norms of a layer. `head_norms`:
    norms of queries and keys: of a head's width (`head`), of all heads' (`all`), or none. `defaults`: what the
    architecture takes where the config says nothing.
    """

    attention: str = "no"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    head_norms: str = ""
    fused_qkv: bool = False
    fused_mlp: bool = False
    mlp_bias: bool = False
    sinks: bool = False
    router: str = "gate"
    experts: str = ""  # the field with their number; empty: no experts
    expert_size: str = "moe_intermediate_size"
    defaults: Mapping[str, object] = field(default_factory=dict)
    window: str = ""  # which layers see a window only: `types`, `alternate`, `all`, `asked` (use_sliding_window)


_FOUR = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_GLM4 = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
FAMILIES = {
    "llama": Family("config", mlp_bias=True),
    "mistral": Family(window="all", defaults={"num_key_value_heads": 8}),
    "mixtral": Family(
        experts="num_local_experts",
        expert_size="intermediate_size",
        window="all",
        defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2": Family("qkv", window="asked", defaults={"num_key_value_heads": 32}),
    "qwen3": Family(
        "config", head_norms="head", window="asked", defaults={"num_key_value_heads": 32, "head_dim": 128}
    ),
    "qwen3_moe": Family(
        "config",
        head_norms="head",
        experts="num_experts",
        defaults={"num_key_value_heads": 4},
    ),
    "olmoe": Family("config", head_norms="all", experts="num_experts", expert_size="intermediate_size"),
    "deepseek": Family("config", experts="n_routed_experts"),
    "deepseek_v2": Family("config", experts="n_routed_experts"),
    "deepseek_v3": Family("config", experts="n_routed_experts"),
    "glm": Family(
        "config_qkv", fused_mlp=True, defaults={"num_key_value_heads": 2, "head_dim": 128, "partial_rotary_factor": 0.5}
    ),
    "glm4": Family(
        "config_qkv",
        norms=_GLM4,
        fused_mlp=True,
        defaults={"num_key_value_heads": 2, "head_dim": 128, "partial_rotary_factor": 0.5},
    ),
    "gpt_oss": Family(
        "config",
        sinks=True,
        router="router",
        experts="num_local_experts",
        expert_size="intermediate_size",
        window="types",
        defaults={"num_key_value_heads": 8, "head_dim": 64, "attention_bias": True, "sliding_window": 128},
    ),
    "phi3": Family(fused_qkv=True, fused_mlp=True, window="all"),
    "gemma": Family(
        "config", defaults={"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True}
    ),
    "gemma2": Family(
        "config",
        norms=_FOUR,
        window="types",
        defaults={
            "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096,
        },
    ),
    "gemma3_text": Family(
        "config",
        norms=_FOUR,
        head_norms="head",
        window="types",
        defaults={
            "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096,
            "sliding_window_pattern": 6,
        },
    ),
}  # fmt: skip
# the number of experts goes by several names
_SAME = {
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_local_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "n_routed_experts": ("n_routed_experts", "num_experts", "num_local_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token"),
}


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values come out of one small vector.

    `kv`: width of that vector; `q`: of the queries' (None: queries are not compressed); `rope`, `nope`: a head's
    dimensions with and without position; `value`: of its values.
    """

    kv: int
    q: int | None
    rope: int
    nope: int
    value: int


@dataclass(frozen=True)
class Experts:
    """The mixture of a layer: `count` routed experts of `size`, of which a token takes `used`; `shared`: the width of
    what every token goes through beside them (0: nothing)."""

    count: int
    used: int
    size: int
    shared: int


@dataclass(frozen=True)
class Sizes:
    """A decoder in numbers.

    `mixtures[i]`: whether layer i holds experts. `windows[i]`: how many tokens back layer i sees (0: all). `context`:
    `max_position_embeddings` (0: not said).
    """

    model_type: str
    family: Family
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    dense: int
    mixtures: tuple[bool, ...]
    windows: tuple[int, ...]
    latent: Latent | None
    experts: Experts | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    context: int

    @property
    def layers(self) -> int:
        return len(self.mixtures)

    def with_layers(self, count: int) -> "Sizes":
        """The same with its first `count` layers only."""
        return replace(self, mixtures=self.mixtures[:count], windows=self.windows[:count])


@dataclass
class Reading:
    """What came of a config. `sizes` is None where a problem leaves them open."""

    sizes: Sizes | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Reader:
    """Takes numbers out of a config and notes what is wrong with them."""

    def __init__(self, config: dict, family: Family, reading: Reading):
        self.config, self.family, self.reading = config, family, reading

    def raw(self, key: str):
        """The value of a field under any of its names, None where none is said."""
        for name in _SAME.get(key, (key,)):
            if self.config.get(name) is not None:
                return self.config[name]
        return None

    def number(self, key: str, *, most: int = MOST, least: int = 1, optional: bool = False) -> int | None:
        """A whole number; the architecture's default where the config says none, which is noted."""
        value = self.raw(key)
        if value is None:
            default = self.family.defaults.get(key)
            if default is not None:
                self.reading.notes.append(Message("anatomy_default", key=key, value=str(default)))
                return int(default)  # type: ignore[call-overload]
            if not optional:
                self.reading.problems.append(Message("anatomy_field_missing", key=key))
            return None
        if type(value) is not int or not least <= value <= most:
            self.problem("anatomy_field_wrong", key=key, value=files.shown(value, 40), least=least, most=most)
            return None
        return value

    def flag(self, key: str) -> bool:
        value = self.config.get(key)
        if value is None:
            default = bool(self.family.defaults.get(key, False))
            if default:
                self.reading.notes.append(Message("anatomy_default", key=key, value="true"))
            return default
        if not isinstance(value, bool):
            self.problem("anatomy_flag_wrong", key=key, value=files.shown(value, 40))
            return False
        return value

    def problem(self, code: str, **values) -> None:
        self.reading.problems.append(Message(code, **values))


def read_sizes(config: dict) -> Reading:
    """The sizes in a config, or what is wrong with it. Raises nothing, whatever the values are."""
    reading = Reading()
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        reading.problems.append(Message("anatomy_no_type"))
        return reading
    inner = config.get("text_config")
    if model_type not in FAMILIES and isinstance(inner, dict) and inner.get("model_type") in FAMILIES:
        reading.notes.append(Message("anatomy_text_part", kind=files.shown(model_type, 40), text=inner["model_type"]))
        config, model_type = inner, inner["model_type"]
    family = FAMILIES.get(model_type)
    if family is None:
        reading.problems.append(Message("anatomy_type_unknown", kind=files.shown(model_type, 60)))
        return reading
    reading.sizes = _sizes(model_type, family, _Reader(config, family, reading))
    if reading.problems:
        reading.sizes = None
    return reading


def _sizes(model_type: str, family: Family, read: _Reader) -> Sizes | None:
    vocabulary, hidden = read.number("vocab_size"), read.number("hidden_size")
    heads, layers = read.number("num_attention_heads"), read.number("num_hidden_layers", most=MOST_LAYERS)
    dense = read.number("intermediate_size")
    latent = _latent(read) if model_type in ("deepseek_v2", "deepseek_v3") else None
    default = family.defaults.get("num_key_value_heads")
    kv_heads = (
        read.number("num_key_value_heads", optional=True) if default or read.raw("num_key_value_heads") else heads
    )
    head = read.number("head_dim", optional=True)
    context = read.number("max_position_embeddings", most=MOST_CONTEXT, optional=True) or 0
    experts = _experts(model_type, family, read)
    if read.reading.problems or not (vocabulary and hidden and heads and kv_heads and layers and dense):
        return None
    if heads % kv_heads:
        read.problem("anatomy_heads", heads=heads, kv=kv_heads)
    if latent is None and not head:
        if hidden % heads:
            read.problem("anatomy_head_width", hidden=hidden, heads=heads)
        head = hidden // heads
    mixtures = _mixtures(model_type, layers, read) if experts else (False,) * layers
    windows = _windows(family, layers, read)
    if read.reading.problems:
        return None
    return Sizes(
        model_type=model_type,
        family=family,
        vocabulary=vocabulary,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head=(latent.nope + latent.rope) if latent else (head or 0),
        dense=dense,
        mixtures=mixtures,
        windows=windows,
        latent=latent,
        experts=experts,
        tied=read.flag("tie_word_embeddings"),
        attention_bias=family.attention == "qkv" or (family.attention != "no" and read.flag("attention_bias")),
        mlp_bias=family.mlp_bias and read.flag("mlp_bias"),
        context=context,
    )


def _latent(read: _Reader) -> Latent | None:
    kv, rope = read.number("kv_lora_rank"), read.number("qk_rope_head_dim")
    nope, value = read.number("qk_nope_head_dim"), read.number("v_head_dim")
    if "q_lora_rank" in read.config:
        q = read.number("q_lora_rank", optional=True)
    else:
        read.problem("anatomy_field_missing", key="q_lora_rank")
        q = None
    if rope and rope % 2:
        read.problem("anatomy_odd", key="qk_rope_head_dim", value=rope)
    return Latent(kv, q, rope, nope, value) if kv and rope and nope and value else None


def _experts(model_type: str, family: Family, read: _Reader) -> Experts | None:
    if not family.experts:
        return None
    count, used = read.number(family.experts), read.number("num_experts_per_tok")
    size = read.number(family.expert_size)
    shared = 0
    if model_type.startswith("deepseek"):
        shared = read.number("n_shared_experts", least=0) or 0
        groups, chosen = read.number("n_group", optional=True), read.number("topk_group", optional=True)
        if groups and chosen and chosen > groups:
            read.problem("anatomy_groups", chosen=chosen, groups=groups)
        if groups and count and count % groups:
            read.problem("anatomy_groups_uneven", count=count, groups=groups)
    if count and used and used > count:
        read.problem("anatomy_experts", used=used, count=count)
    if not (count and used and size):
        return None
    return Experts(count, used, size, shared * size)


def _mixtures(model_type: str, layers: int, read: _Reader) -> tuple[bool, ...]:
    """Which layers hold experts, as the model's code in transformers (for `deepseek`: ours) decides it."""
    if model_type.startswith("deepseek"):
        first = read.number("first_k_dense_replace", least=0, optional=True) or 0
        every = read.number("moe_layer_freq", optional=True) or 1
        if first > layers:
            read.problem("anatomy_first_dense", first=first, layers=layers)
        if every != 1 and model_type != "deepseek":
            read.reading.notes.append(Message("anatomy_layer_freq", value=every))
            every = 1
        return tuple(i >= first and i % every == 0 for i in range(layers))
    if model_type == "qwen3_moe":
        step = read.number("decoder_sparse_step", optional=True) or 1
        plain = read.config.get("mlp_only_layers") or []
        if not (isinstance(plain, list) and all(type(i) is int for i in plain)):
            read.problem("anatomy_list_wrong", key="mlp_only_layers")
            plain = []
        without = set(plain)
        return tuple(i not in without and (i + 1) % step == 0 for i in range(layers))
    return (True,) * layers


def _windows(family: Family, layers: int, read: _Reader) -> tuple[int, ...]:
    """How far back each layer sees, 0: all the way."""
    if not family.window:
        return (0,) * layers
    window = read.number("sliding_window", most=MOST_CONTEXT, optional=True) or 0
    types = read.config.get("layer_types")
    if types is not None:
        if not (isinstance(types, list) and len(types) == layers and all(isinstance(kind, str) for kind in types)):
            found = len(types) if isinstance(types, list) else files.shown(types, 40)
            read.problem("anatomy_layer_types", count=str(found), layers=layers)
            return (0,) * layers
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    if family.window == "types":  # the architecture's own order
        every = read.number("sliding_window_pattern", optional=True) or 2
        return tuple(window if (i + 1) % every else 0 for i in range(layers))
    if family.window == "asked":
        if read.config.get("use_sliding_window") is not True:
            return (0,) * layers
        first = read.number("max_window_layers", least=0, optional=True) or 0
        return tuple(window if i >= first else 0 for i in range(layers))
    return (window,) * layers
