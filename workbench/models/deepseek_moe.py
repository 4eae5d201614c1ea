"""DeepSeek-MoE (`model_type: deepseek`, arXiv 2401.06066) without remote code: deepseek-moe-16b-base and -chat.

Llama's decoder (plain multi-head attention, rotary halves) whose feed-forward layers, from `first_k_dense_replace` on,
are mixtures: shared experts, plus the top k of the routed ones by a softmax gate whose weights are not renormalized.
These are DeepSeek-V2's own modules in transformers with greedy routing. The checkpoint's names, one matrix per expert,
load into fused experts.
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe, DeepseekV2TopkRouter
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel

from workbench.errors import UserError


@strict
class DeepseekMoeConfig(LlamaConfig):
    """The checkpoint's own fields; the defaults are those of deepseek-moe-16b."""

    model_type = "deepseek"
    attribute_map = {"num_experts": "n_routed_experts"}
    base_model_tp_plan = None

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    moe_intermediate_size: int = 1408
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    n_shared_experts: int | None = 2
    n_routed_experts: int | None = 64
    num_experts_per_tok: int | None = 6
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    max_position_embeddings: int = 4096
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    routed_scaling_factor: float = 1.0
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None


class _FusedExperts:
    """transformers looks for its decorator in the model's file; here the experts are DeepSeek-V2's."""

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True


class DeepseekMoeModel(_FusedExperts, LlamaModel):
    config_class = DeepseekMoeConfig

    def __init__(self, config: DeepseekMoeConfig):
        if config.norm_topk_prob or config.scoring_func != "softmax":
            raise UserError("deepseek_gate")
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            if index >= config.first_k_dense_replace and index % config.moe_layer_freq == 0:
                layer.mlp = DeepseekV2Moe(config)
        self.post_init()


class DeepseekMoeForCausalLM(_FusedExperts, LlamaForCausalLM):
    """DeepSeek-MoE with a language modelling head."""

    config_class = DeepseekMoeConfig
    _tp_plan = None

    def __init__(self, config: DeepseekMoeConfig):
        super(LlamaForCausalLM, self).__init__(config)
        self.model = DeepseekMoeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, DeepseekV2TopkRouter):
            module.weight.data.normal_(0.0, self.config.initializer_range)


def install() -> None:
    """Make AutoConfig and AutoModelForCausalLM know the model, and its checkpoint's names."""
    AutoConfig.register("deepseek", DeepseekMoeConfig, exist_ok=True)
    AutoModelForCausalLM.register(DeepseekMoeConfig, DeepseekMoeForCausalLM, exist_ok=True)
    mapping = get_checkpoint_conversion_mapping("deepseek_v2")
    register_checkpoint_conversion_mapping("deepseek", mapping, overwrite=True)
