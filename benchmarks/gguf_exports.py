"""Exported GGUF files in llama.cpp on the CPU, beside transformers: tokens of texts, greedy answers and where they end.

    python benchmarks/gguf_exports.py --node FOLDER [--workspace FOLDER] [--tokenizer FOLDER]... [--tokens 48]

`--node`: a folder where `npm install node-llama-cpp @node-llama-cpp/linux-x64` ran. Compared are

- the demo model (SmolLM2-135M), alone, with a LoRA merged in, and with that LoRA as a GGUF of its own: greedy answers
  to 20 questions in f16, and how many of them q8_0 changes;
- random models of each architecture, made here, with weights that f16 holds exactly;
- tokenizers: those named with `--tokenizer` (folders with tokenizer.json and tokenizer_config.json), each with a random
  model: the tokens of some texts.

transformers computes in float32. Prints a line for each comparison; the exit code is 1 if one failed. llama.cpp rounds
what it multiplies f16 weights with to f16, so that a greedy answer may fork where two tokens are almost as likely as
each other. The line says by how much transformers' log-probabilities of the two differ at most; a fork at less than
0.05 (0.005 with f32 weights) counts as the same.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
NODE = """
import {getLlama} from "node-llama-cpp";
import {readFileSync} from "fs";
const asked = JSON.parse(readFileSync(process.argv[2]));
const llama = await getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: "error"});
const model = await llama.loadModel({modelPath: asked.model});
const answers = [], options = {contextSize: 1024, threads: 2};
const cache = {experimentalKvCacheKeyType: asked.cache, experimentalKvCacheValueType: asked.cache};
const lora = asked.lora ? {adapters: [{filePath: asked.lora}]} : undefined;
for (const prompt of asked.prompts) {
  const context = await model.createContext({...options, lora, flashAttention: false, ...cache});
  const tokens = [];
  for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    tokens.push(token);
    if (model.isEogToken(token) || tokens.length >= asked.tokens) break;
  }
  await context.dispose();
  answers.push(tokens);
}
const texts = asked.texts.map((text) => [...model.tokenize(text, true)]);
console.log(JSON.stringify({answers, texts}));
process.exit(0);
"""
QUESTIONS = [
    "What is the capital of France?", "Name three colors.", "What is 2 + 2?", "Write a short poem about the sea.",
    "Who wrote Hamlet?", "Explain gravity in one sentence.", "How do I boil an egg?", "What is Python?",
    "Give me a synonym for happy.", "What does a bee make?", "Translate 'good morning' into French.", "What is H2O?",
    "List the days of the week.", "Why is the sky blue?", "What is the largest planet?", "Tell me a joke.",
    "What is a noun?", "How many legs has a spider?", "What is the opposite of cold?", "Say hello.",
]  # fmt: skip
TEXTS = [
    "Hello world, it's 2024! I'M here;  we'll see.\n\n  def f(x):\n\treturn x**2 + 10000\r\n",
    "Größe, naïve, Ελληνικά, Кириллица, 中文字符，日本語テキスト。한국어 ½ 100,000.5",
    "emoji 🚀👩‍💻 and \u00a0 spaces   \n \n\n end",
]
CLOSE = 0.05  # log-probabilities; llama.cpp rounds what it multiplies f16 weights with to f16
failed = False


def report(what: str, good: bool, detail: str = "") -> None:
    global failed
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {what}{': ' + detail if detail else ''}", flush=True)


def llama_cpp(node: Path, model: Path, prompts, texts=(), tokens: int = 32, lora: Path | None = None) -> dict:
    """llama.cpp's greedy answers (end token included) and tokens of texts."""
    script, asked = node / "gguf_exports.mjs", node / "gguf_exports.json"
    script.write_text(NODE)
    values = {"model": str(model), "prompts": prompts, "texts": list(texts), "tokens": tokens, "cache": "F32"}
    asked.write_text(json.dumps(values | ({"lora": str(lora)} if lora else {})))
    done = subprocess.run(["node", str(script), str(asked)], cwd=node, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def greedy(model, prompts, ends: list[int], tokens: int) -> list[list[int]]:
    """transformers' greedy answers, end token included."""
    import torch

    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, eos_token_id=ends,
            pad_token_id=0, repetition_penalty=1.0,
        )  # fmt: skip
        answers.append(made[0, len(prompt) :].tolist())
    return answers


def compare(what: str, model, prompts, wanted, found, ends, close: float = CLOSE) -> None:
    """Report how many answers are equal, where the first fork is, and how close it is."""
    import torch

    equal = sum(a == b for a, b in zip(wanted, found, strict=True))
    ended = sum(a[-1] in ends and b[-1] in ends for a, b in zip(wanted, found, strict=True))
    detail = f"{equal} of {len(wanted)} answers equal, {ended} ended by both"
    gap = 0.0
    for prompt, a, b in zip(prompts, wanted, found, strict=True):
        if a != b:
            at = next(i for i in range(len(a) + len(b)) if a[i : i + 1] != b[i : i + 1])
            with torch.no_grad():
                logits = model(torch.tensor([prompt + a[:at]])).logits[0, -1].log_softmax(-1)
            here = float(logits[a[at]] - logits[b[at]]) if at < min(len(a), len(b)) else math.inf
            gap = max(gap, here)
    if equal < len(wanted):
        detail += f"; forks between tokens at most {gap:.4f} apart"
    report(what, equal == len(wanted) or gap < close, detail)


def export(workspace, model: Path | str, kind: str, name: str, adapters=None) -> Path:
    from workbench.config.options import EngineConfig
    from workbench.data.encode import set_template
    from workbench.models.gguf.export import export_gguf

    config = EngineConfig(model_name_or_path=str(model))
    quiet = lambda *_: None  # noqa: E731
    return export_gguf(config, adapters or {}, name, kind, workspace, quiet, quiet, set_template)


def demo(node: Path, workspace, tokens: int) -> None:
    """The demo model, alone and with a random LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workbench.models.demo import ensure_demo_model
    from workbench.models.ends import end_tokens

    folder = ensure_demo_model(workspace, lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ends = end_tokens(model, tokenizer)
    talks = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [
        tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=True)["input_ids"] for t in talks
    ]
    wanted = greedy(model, prompts, ends, tokens)
    plain = export(workspace, folder, "gguf-f16", "demo-f16")
    found = llama_cpp(node, plain, prompts, TEXTS, tokens)
    compare("SmolLM2 f16", model, prompts, wanted, found["answers"], ends)
    report("SmolLM2 tokens of texts", found["texts"] == [tokenizer(text)["input_ids"] for text in TEXTS])
    found = llama_cpp(node, export(workspace, folder, "gguf-f32", "demo-f32"), prompts, (), tokens)
    compare("SmolLM2 f32", model, prompts, wanted, found["answers"], ends, close=0.005)
    found = llama_cpp(node, export(workspace, folder, "gguf-q8_0", "demo-q8"), prompts, (), tokens)
    compare("SmolLM2 q8_0", model, prompts, wanted, found["answers"], ends, close=math.inf)

    torch.manual_seed(0)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=modules, use_rslora=True))
    with torch.no_grad():
        for key, value in tuned.named_parameters():
            if "lora_B" in key:
                value.normal_(std=0.003)
    adapter = workspace.root / "adapter"
    tuned.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    changed = greedy(tuned, prompts, ends, tokens)
    report(
        "the LoRA changes answers", changed != wanted, f"{sum(a != b for a, b in zip(changed, wanted, strict=True))}"
    )
    found = llama_cpp(
        node, export(workspace, folder, "gguf-f16", "demo-merged", {str(adapter): 1.0}), prompts, (), tokens
    )
    compare("SmolLM2 with a LoRA merged, f16", tuned, prompts, changed, found["answers"], ends)
    lora = export(workspace, folder, "gguf-lora", "demo-lora", {str(adapter): 1.0})
    found = llama_cpp(node, plain, prompts, (), tokens, lora)
    compare("SmolLM2 f16 and the LoRA as GGUF", tuned, prompts, changed, found["answers"], ends)


def random_models() -> dict:
    """Configs of small models of each architecture, and of what is special in them."""
    from transformers import DeepseekV2Config, LlamaConfig, Qwen2Config, Qwen3Config

    common = {
        "vocab_size": 288, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 2,
        "bos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.15,
    }  # fmt: skip
    latent = common | {
        "num_key_value_heads": 4, "moe_intermediate_size": 64, "kv_lora_rank": 32, "q_lora_rank": None,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 2,
        "num_experts_per_tok": 3, "first_k_dense_replace": 1, "topk_method": "greedy", "norm_topk_prob": False,
    }  # fmt: skip
    llama3 = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
    spread = {"mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32.0, "beta_slow": 1.0}
    return {
        "llama": LlamaConfig(**common),
        "llama with biases, untied": LlamaConfig(**common, attention_bias=True, mlp_bias=True),
        "llama with llama3's RoPE": LlamaConfig(**common, rope_parameters=llama3),
        "llama with linear RoPE": LlamaConfig(
            **common, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
        ),
        "qwen2, tied": Qwen2Config(**common, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**common, head_dim=32),
        "qwen3 with yarn": Qwen3Config(**common, head_dim=32, rope_parameters=yarn),
        "deepseek2": DeepseekV2Config(**latent | {"num_hidden_layers": 27}),  # others need q_lora_rank
        "deepseek2 with a latent of q and yarn": DeepseekV2Config(
            **latent | {"q_lora_rank": 48, "routed_scaling_factor": 2.5}, rope_parameters=yarn | spread
        ),
    }


def tiny(node: Path, workspace, tokens: int) -> None:
    """Random models with a byte-level tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import make_tiny_model

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(workspace.root / "tiny"))
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(4, 260, (length,), generator=generator).tolist() for length in (3, 20, 90, 200)]
    for number, (what, config) in enumerate(random_models().items()):
        torch.manual_seed(number)
        folder = workspace.root / f"random-{number}"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "norm" in name:
                    value.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    value.normal_(std=0.2)
                value.copy_(value.half().float())  # what f16 holds, so that only the arithmetic differs
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        wanted = greedy(model, prompts, [2], tokens)
        found = llama_cpp(node, export(workspace, folder, "gguf-f16", f"random-{number}"), prompts, TEXTS, tokens)
        compare(f"random {what}, f16", model, prompts, wanted, found["answers"], [2])
        found = llama_cpp(node, export(workspace, folder, "gguf-f32", f"exact-{number}"), prompts, TEXTS, tokens)
        compare(f"random {what}, f32", model, prompts, wanted, found["answers"], [2], close=0.005)
        report(f"random {what}, tokens", found["texts"] == [tokenizer(text)["input_ids"] for text in TEXTS])


def tokenizers(node: Path, workspace, folders: list[Path]) -> None:
    """Tokenizers with a random model each."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    for number, folder in enumerate(folders):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
        )  # fmt: skip
        model = workspace.root / f"words-{number}"
        LlamaForCausalLM(config).to(torch.float16).save_pretrained(model)
        tokenizer.save_pretrained(model)
        made = export(workspace, model, "gguf-f16", f"words-{number}")
        fields = GGUFReader(made).fields
        shown = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre", "eos_token_id")}
        found = llama_cpp(node, made, [], TEXTS)["texts"]
        wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        report(
            f"tokenizer {folder.name}",
            found == wanted,
            f"{shown}" if found == wanted else f"{shown} {fork(wanted, found, tokenizer)}",
        )


def fork(wanted, found, tokenizer) -> str:
    """The tokens around the first difference."""
    for a, b in zip(wanted, found, strict=True):
        if a != b:
            at = next(i for i in range(len(a) + len(b)) if a[i : i + 1] != b[i : i + 1])
            around = slice(max(0, at - 2), at + 4)
            return f"{tokenizer.convert_ids_to_tokens(a[around])} {tokenizer.convert_ids_to_tokens(b[around])}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--tokenizer", type=Path, action="append", default=[])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--only", choices=["demo", "tiny", "tokenizers"])
    options = parser.parse_args()
    from workbench.storage.workspace import Workspace

    with TemporaryDirectory() as folder:
        workspace = Workspace(options.workspace or folder).create()
        if options.only in (None, "tiny"):
            tiny(options.node, workspace, options.tokens)
        if options.only in (None, "tokenizers"):
            tokenizers(options.node, workspace, options.tokenizer)
        if options.only in (None, "demo"):
            demo(options.node, workspace, options.tokens)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
