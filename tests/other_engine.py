"""A stand-in for vLLM and SGLang: their protocols, as they document them, over a small model of transformers.

It has what the workbench uses of them and refuses what they refuse. In a test's process: `StandIn`. As a program:
`python other_engine.py vllm serve MODEL …` or `sglang serve --model-path MODEL …`, with their options.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

MAX_LOGPROBS = 20  # vLLM's --max-logprobs


class Model:
    """A base model and LoRA adapters by name."""

    def __init__(self, folder: str, adapters: dict[str, str]):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.adapters: dict[str, tuple[str, torch.nn.Module]] = {}
        for name, path in adapters.items():
            self.load(name, path)

    def load(self, name: str, path: str) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.adapters[name] = path, PeftModel.from_pretrained(base, path).eval()

    def logprobs(self, ids: list[int], adapter: str | None) -> torch.Tensor:
        """[tokens, vocabulary]"""
        model = self.adapters[adapter][1] if adapter else self.base
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def generate(self, prompt, adapter, limit, values, ends, seed, forced):
        """(token, its log-probability, the distribution's, `stop` or `length` at the end) one by one."""
        generator = torch.Generator()
        if seed is not None:
            generator.manual_seed(seed % 2**63)
        ids, eos = list(prompt), self.base.generation_config.eos_token_id
        for number in range(limit):
            logprobs = self.logprobs(ids, adapter)[-1]
            scores = logprobs.clone()
            for token, bias in (values.get("logit_bias") or {}).items():
                scores[int(token)] += bias
            if forced is not None:
                token = forced[number] if number < len(forced) else eos
            elif values["temperature"] == 0:
                token = int(scores.argmax())
            else:
                if values["top_k"] > 0:
                    scores[scores < scores.topk(values["top_k"]).values[-1]] = -torch.inf
                chances = (scores / values["temperature"]).softmax(-1)
                token = int(torch.multinomial(chances, 1, generator=generator))
            ids.append(token)
            ended = token == eos or token in ends
            yield (
                token,
                float(logprobs[token]),
                logprobs,
                "stop" if ended else "length" if number + 1 == limit else None,
            )
            if ended:
                return


class StandIn:
    """The app of one engine. What it was asked is in `requests`; `gave_up` counts streams whose client went away."""

    def __init__(self, engine: str, folder, *, adapters=None, key: str = "", served: str = "base", **more):
        """`more`: `context`; `updating`, whether adapters may be loaded later; `incremental`, whether SGLang's events
        bring only what is new; `breaks`, tokens after which a stream ends without a word."""
        self.engine, self.key, self.served = engine, key, served
        self.context, self.updating = more.get("context", 512), more.get("updating", True)
        self.incremental, self.breaks = more.get("incremental", False), more.get("breaks", 0)
        self.model = Model(str(folder), dict(adapters or {}))
        self.requests: list[dict] = []
        self.gave_up = 0
        self.app = FastAPI()
        self.app.get("/health")(lambda: PlainTextResponse(""))
        self.app.get("/v1/models")(self.models)
        self.app.post("/tokenize")(self.tokenize)
        if engine == "vllm":
            self.app.post("/v1/completions")(self.complete)
            if self.updating:  # VLLM_ALLOW_RUNTIME_LORA_UPDATING
                self.app.post("/v1/load_lora_adapter")(self.load)
                self.app.post("/v1/unload_lora_adapter")(self.unload)
        else:
            self.app.post("/generate")(self.generate)
            self.app.post("/load_lora_adapter")(self.load)
            self.app.post("/unload_lora_adapter")(self.unload)

    async def guarded(self, scope, receive, send):
        """The app behind its key."""
        if scope["type"] == "http" and self.key:
            path, headers = scope["path"], dict(scope["headers"])
            guarded = path.startswith("/v1") if self.engine == "vllm" else path != "/health"
            if guarded and headers.get(b"authorization") != f"Bearer {self.key}".encode():
                await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def error(self, status: int, message: str, kind: str = "BadRequestError"):
        return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)

    def models(self):
        common = {"object": "model", "created": int(time.time()), "owned_by": self.engine}
        base = common | {"id": self.served, "root": self.model.folder, "parent": None, "max_model_len": self.context}
        loras = [
            common | {"id": name, "root": path, "parent": self.served, "max_model_len": None}
            for name, (path, _) in self.model.adapters.items()
        ]
        return {"object": "list", "data": [base, *loras]}

    async def tokenize(self, request: Request):
        body = await request.json()
        ids = self.model.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return {"count": len(ids), "max_model_len": self.context, "tokens": ids}

    async def load(self, request: Request):
        body = await request.json()
        try:
            self.model.load(body["lora_name"], body["lora_path"])
        except (OSError, ValueError) as error:
            return self.error(400, str(error).splitlines()[0])
        if self.engine == "sglang":
            return {"success": True, "loaded_adapters": {name: path for name, (path, _) in self.model.adapters.items()}}
        return PlainTextResponse(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    async def unload(self, request: Request):
        del self.model.adapters[(await request.json())["lora_name"]]
        return {"success": True} if self.engine == "sglang" else PlainTextResponse("Success")

    def events(self, made, event):
        """Server-sent events of generated tokens, one and two at a time."""

        async def stream():
            done, waiting, sent, size = False, [], 0, 1
            try:
                for token in made:
                    await asyncio.sleep(0.001)  # others are served, and a client's going away is seen
                    waiting.append(token)
                    if len(waiting) < size and not token[3]:
                        continue
                    yield f"data: {json.dumps(event(waiting))}\n\n"
                    sent, waiting, size = sent + len(waiting), [], 3 - size
                    if self.breaks and sent >= self.breaks:
                        done = True
                        return
                yield "data: [DONE]\n\n"
                done = True
            finally:
                self.gave_up += not done

        return StreamingResponse(stream(), media_type="text/event-stream")

    # vLLM

    async def complete(self, request: Request):
        body = await request.json()
        self.requests.append(body)
        prompt, adapter = body["prompt"], body["model"] if body["model"] != self.served else None
        if adapter and adapter not in self.model.adapters:
            return self.error(404, f"The model `{adapter}` does not exist.", "NotFoundError")
        limit = body.get("max_tokens", 16)
        if len(prompt) + limit > self.context:
            return self.error(400, f"This model's maximum context length is {self.context} tokens.")
        if max(body.get("logprobs") or 0, body.get("prompt_logprobs") or 0) > MAX_LOGPROBS:
            return self.error(400, f"Requested sample logprobs of more than {MAX_LOGPROBS}.")
        if "prompt_logprobs" in body:
            assert not body.get("stream"), "vLLM refuses both together"
            choice = {"index": 0, "text": "", "finish_reason": "length"}
            choice["prompt_logprobs"] = self.prompt_logprobs(prompt, adapter, body["prompt_logprobs"])
            return {"object": "text_completion", "model": body["model"], "choices": [choice]}
        values = {"temperature": 1.0, "top_k": 0} | body
        wanted = body.get("response_format")
        schema = wanted["json_schema"]["schema"] if wanted and wanted["type"] == "json_schema" else None
        ends, seed = body.get("stop_token_ids") or [], body.get("seed")
        made = self.model.generate(prompt, adapter, limit, values, ends, seed, self.forced(schema))
        return self.events(made, lambda tokens: self.chunk(body, tokens))

    def chunk(self, body: dict, tokens: list) -> dict:
        finish, eos = tokens[-1][3], self.model.base.generation_config.eos_token_id
        shown = [token for token, *_ in tokens if not (finish == "stop" and token is tokens[-1][0])]
        choice = {
            "index": 0,
            "text": self.model.tokenizer.decode(shown),
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": None if tokens[-1][0] == eos or finish != "stop" else tokens[-1][0],
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = [token for token, *_ in tokens]
        if body.get("logprobs") is not None:
            named = bool(body.get("return_tokens_as_token_ids"))
            choice["logprobs"] = self.lists(tokens, body["logprobs"], named)
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}

    def lists(self, tokens: list, top: int, named: bool) -> dict:
        name = (lambda id_: f"token_id:{id_}") if named else (lambda id_: self.model.tokenizer.decode([id_]))
        best = []
        for token, logprob, all_, _ in tokens:
            entries = {name(token): logprob}  # the token first, then the likeliest
            values, ids = all_.topk(max(top, 1))
            entries |= {name(int(id_)): float(value) for id_, value in list(zip(ids, values, strict=True))[:top]}
            best.append(entries)
        return {
            "tokens": [name(token) for token, *_ in tokens],
            "token_logprobs": [logprob for _, logprob, *_ in tokens],
            "top_logprobs": best,
            "text_offset": [0] * len(tokens),
        }

    def prompt_logprobs(self, prompt: list[int], adapter: str | None, top: int) -> list:
        rows = self.model.logprobs(prompt, adapter)
        out: list = [None]
        for token, row in zip(prompt[1:], rows, strict=False):
            ids = dict.fromkeys([token, *row.topk(max(top, 1)).indices.tolist()[:top]])
            out.append(
                {
                    str(id_): {
                        "logprob": float(row[id_]),
                        "rank": int((row > row[id_]).sum()) + 1,
                        "decoded_token": self.model.tokenizer.decode([id_]),
                    }
                    for id_ in ids
                }
            )
        return out

    def forced(self, schema: dict | None) -> list[int] | None:
        """JSON for a schema: the first value of its `enum`."""
        if schema is None:
            return None
        return self.model.tokenizer(json.dumps(schema["enum"][0]), add_special_tokens=False)["input_ids"]

    # SGLang

    async def generate(self, request: Request):
        body = await request.json()
        self.requests.append(body)
        prompt, values, adapter = body["input_ids"], body["sampling_params"], body.get("lora_path")
        limit, top = values.get("max_new_tokens", 128), body.get("top_logprobs_num", 0)
        if adapter and adapter not in self.model.adapters:
            return self.error(400, f"Got LoRA adapter that has never been loaded: {adapter}")
        if len(prompt) + limit > self.context:
            return self.error(400, "The input is longer than the model's context length.")
        if not body.get("stream"):
            return self.measured_input(prompt, adapter, body["logprob_start_len"], top)
        values = {"top_k": -1} | values
        schema = json.loads(values["json_schema"]) if "json_schema" in values else None
        ends, seed = values.get("stop_token_ids") or [], values.get("sampling_seed")
        made = self.model.generate(prompt, adapter, limit, values, ends, seed, self.forced(schema))
        before: list = []

        def event(tokens: list) -> dict:
            before.extend(tokens)
            told, finish = tokens if self.incremental else before, tokens[-1][3]
            about = {"prompt_tokens": len(prompt), "completion_tokens": len(before), "finish_reason": None}
            if finish:
                about["finish_reason"] = {"type": finish} | (
                    {"matched": tokens[-1][0]} if finish == "stop" else {"length": limit}
                )
            if body.get("return_logprob"):
                about["output_token_logprobs"] = [[logprob, token, None] for token, logprob, *_ in told]
                about["output_token_logprobs_length"] = len(before)
                if top:
                    about["output_top_logprobs"] = [self.best(all_, top) for _, _, all_, _ in told]
            ids = [token for token, *_ in told]
            # some versions put tokens of the prompt before them: sgl-project/sglang#17240
            return {"text": self.model.tokenizer.decode(ids), "output_ids": prompt[-5:] + ids, "meta_info": about}

        return self.events(made, event)

    @staticmethod
    def best(row: torch.Tensor, top: int) -> list:
        values, ids = row.topk(top)
        return [[float(value), int(id_), None] for value, id_ in zip(values, ids, strict=True)]

    def measured_input(self, prompt: list[int], adapter: str | None, start: int, top: int) -> dict:
        rows = self.model.logprobs(prompt, adapter)
        places = range(max(start, 0), len(prompt))
        first = places[0]
        told = [[None if at == first else float(rows[at - 1][prompt[at]]), prompt[at], None] for at in places]
        about = {"prompt_tokens": len(prompt), "completion_tokens": 0, "input_token_logprobs": told}
        about["finish_reason"] = {"type": "length", "length": 0}
        if top:
            about["input_top_logprobs"] = [None if at == first else self.best(rows[at - 1], top) for at in places]
        return {"text": "", "output_ids": [], "meta_info": about}

    def running(self):
        """On a free port, in this process: its address."""
        return serving(self.guarded)


@contextlib.contextmanager
def serving(app) -> Iterator[str]:
    """An app on a free port, in this process: its address."""
    server = uvicorn.Server(uvicorn.Config(app, interface="asgi3", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def main(engine: str, *given: str) -> None:
    """The program: its options are those of the engine that the workbench gives."""
    if given[0] != "serve":
        sys.exit(f"unknown command {given[0]}")
    options = argparse.ArgumentParser(engine)
    for name in ("--host", "--served-model-name", "--revision", "--dtype"):
        options.add_argument(name)
    for name in ("--port", "--max-lora-rank"):
        options.add_argument(name, type=int)
    options.add_argument("--enable-lora", action="store_true")
    if engine == "vllm":
        options.add_argument("folder")
        options.add_argument("--lora-modules", nargs="+", default=[])
        options.add_argument("--tensor-parallel-size", type=int)
        options.add_argument("--gpu-memory-utilization", type=float)
        options.add_argument("--max-model-len", type=int, default=512)
    else:
        options.add_argument("--model-path", dest="folder", required=True)
        options.add_argument("--lora-paths", nargs="+", default=[], dest="lora_modules")
        options.add_argument("--tp-size", type=int)
        options.add_argument("--mem-fraction-static", type=float)
        options.add_argument("--context-length", type=int, default=512, dest="max_model_len")
    asked = options.parse_args(given[1:])
    if engine == "vllm":
        modules = map(json.loads, asked.lora_modules)
        adapters = {module["name"]: module["path"] for module in modules}
    else:
        adapters = dict(module.split("=", 1) for module in asked.lora_modules)
    assert not adapters or (asked.enable_lora and asked.max_lora_rank)
    # a worker, as both have for each GPU
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("Loading safetensors checkpoint shards:   0% Completed | 0/2", end="\r", flush=True)
    print("Loading safetensors checkpoint shards:  50% Completed | 1/2", end="\r", flush=True)
    updating = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "True"
    key = os.environ.get("VLLM_API_KEY", "")
    stand_in = StandIn(
        engine,
        asked.folder,
        adapters=adapters,
        key=key,
        served=asked.served_model_name,
        context=asked.max_model_len,
        updating=updating,
    )
    print("Application startup complete.", flush=True)
    uvicorn.run(stand_in.guarded, interface="asgi3", host=asked.host, port=asked.port, log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
