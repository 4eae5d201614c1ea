"""Decoding steps that read pages in place, as a GPU records them: here each is run again instead of replayed, with the
kernels in Triton's interpreter, and must give what transformers gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]

# a process of its own: the interpreter is chosen when triton is imported
PROGRAM = """
import builtins
import torch
from transformers import DeepseekV2Config, LlamaConfig, MistralConfig, AutoModelForCausalLM

def number(one):  # of a loop's bound, which the interpreter has as an array
    return int(one.handle.data.item()) if hasattr(one, "handle") else one

from workbench.engine.recorded import attention_kernels
attention_kernels.range = lambda *bounds: builtins.range(*map(number, bounds))
attention_kernels._PARTS, attention_kernels._TOKENS, attention_kernels._LEAST = 4, 16, 16  # the interpreter is slow
from workbench.engine.batching import fit, runner
from workbench.engine.recorded.steps import RecordedSteps
from workbench.models.rope_lengths import RopeLengths

class Again(RecordedSteps):
    def _record(self, adapter, rows):
        from workbench.engine.recorded.attention import Places
        places = Places(self._table[:rows], self._lengths[:rows], self.window, self._latent(adapter))
        class Step:
            def replay(step):
                step.logits = self._forward(rows, places)
        class Recording:
            graph = Step()
            logits = property(lambda one: one.graph.logits)
        one = Recording()
        one.places = places
        return one

runner.RecordedSteps = Again
small = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)
rope = {"rope_type": "default", "rope_theta": 1e4}
configs = {
    "llama": LlamaConfig(rope_parameters=rope, **small),
    "dynamic": LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
                           **small | {"max_position_embeddings": 4}),
    "mistral": MistralConfig(rope_parameters=rope, sliding_window=3, **small),
    "deepseek_v2": DeepseekV2Config(
        rope_parameters=rope, kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12,
        n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=16, first_k_dense_replace=1,
        topk_method="greedy", **small | {"num_key_value_heads": 4}),
}
torch.manual_seed(0)
for kind, config in configs.items():
    config._attn_implementation = "sdpa"
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3) if parameter.dim() > 1 else None
    rope = RopeLengths(model)
    want = fit._alone(model)
    cost, alike, found = fit._side_by_side(model, rope, "plain", None, recorded=True)
    assert cost and alike == 2
    difference = fit._difference(found, want)
    assert difference < 1e-4, (kind, difference)
"""


def test_steps_that_read_pages_in_place_are_transformers_own():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
