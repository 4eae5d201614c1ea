"""How well each uncertainty score tells wrong answers from right ones: AUROC with bootstrap intervals.

    python benchmarks/hallucination.py collect OUT [--shard 0/4]   ask the demo model both sets of questions; JSON lines
    python benchmarks/hallucination.py report FILES…               the table of docs/hallucination.md

`data/probes/facts.jsonl` (304 questions) is what the headline score was chosen on, `benchmarks/facts_held_out.jsonl`
(310, other topics) is what it was not. `collect` takes about 10 s a question on 2 cores; shards run side by side on a
GPU.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SETS = {"facts": ROOT / "data" / "probes" / "facts.jsonl", "held out": ROOT / "benchmarks" / "facts_held_out.jsonl"}
MAX_TOKENS, SAMPLES, TEMPERATURE = 32, 10, 1.0
REWORDED = ("Please answer this question: {q}", "{q} Answer in one sentence.", "I have a quiz question for you. {q}")
P_TRUE = (
    "Question: {q}\nProposed answer: {a}\nIs the proposed answer true or false? Answer with one word, True or False."
)


def collect(out: Path, shard: str, start: int, model: str, dtype: str, temperature: float) -> None:
    """Ask every question: a greedy answer, samples, rewordings; keep what the model thought of each token."""
    from workbench.config.options import EngineConfig
    from workbench.config.run_config import validated
    from workbench.engine.backend import Job, Sampling
    from workbench.engine.transformers_backend import TransformersDecoder
    from workbench.storage.workspace import Workspace
    from workbench.uncertainty.rules import passes

    place = Workspace(out.parent / "workspace").create()
    config = validated({"model_name_or_path": model, "infer_dtype": dtype}, EngineConfig)
    decoder = TransformersDecoder(config, place, lambda phase, share: None, print)

    def ask(question: str, n: int = 1, temperature: float = 0.0, seed: int = 0) -> list[tuple[str, list]]:
        sampling = Sampling(MAX_TOKENS, temperature, 1.0, logprobs=5, n=n, seed=seed)
        answers = [["", []] for _ in range(n)]
        for token in decoder.open(Job(None, [{"role": "user", "content": question}], sampling)):
            answers[token.index][0] += token.text
            answers[token.index][1] += token.infos
        return answers

    def entries(infos) -> list[dict]:
        return [
            {
                "text": i.text,
                "logprob": i.logprob,
                "rank": i.rank,
                "entropy": i.entropy,
                "top_logprobs": [{"token": t[1].decode(errors="replace"), "logprob": t[2]} for t in i.top],
            }
            for i in infos
        ]

    def scored(question: str, answer, top: int = 0) -> list:
        return decoder.score(None, [{"role": "user", "content": question}], answer, top)

    mine, of = map(int, shard.split("/"))
    rows = [(name, json.loads(line)) for name, file in SETS.items() for line in file.read_text().splitlines()]
    with open(out, "w", encoding="utf-8") as file:
        for number, (name, probe) in enumerate(rows):
            if number < start or number % of != mine:
                continue
            question = probe["prompt"]
            ((answer, infos),) = ask(question)
            ids = [info.id for info in infos]
            row = {"set": name, "number": number, **probe, "answer": answer, "right": passes(answer, probe)}
            row["tokens"] = entries(infos)
            row["samples"] = [
                {"text": text, "logprobs": [i.logprob for i in measured], "right": passes(text, probe)}
                for text, measured in ask(question, SAMPLES, temperature, number)
            ]
            wordings = [wording.format(q=question) for wording in REWORDED]
            row["reworded"] = [[i.logprob for i in scored(w, ids)] for w in wordings]
            row["reworded_answers"] = [ask(w)[0][0] for w in wordings]
            row["blank"] = [i.logprob for i in scored("Say something.", ids)]
            asked = P_TRUE.format(q=question, a=answer)
            row["p_true"] = [scored(asked, word)[0].logprob for word in ("True", "False")]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


def scores(row: dict) -> dict[str, float]:
    """Every score of one answer; higher means surer."""
    from workbench.uncertainty.confidence import summary, views
    from workbench.uncertainty.consistency import semantic_entropy, support, words

    tokens = views(row["tokens"])
    logprobs = [token.logprob for token in tokens] or [-100.0]
    question, answer = row["prompt"], row["answer"]
    samples = [sample["text"] for sample in row["samples"]]
    of = summary(tokens)

    def overlap(one: str, other: str) -> float:
        """ROUGE-L, F1."""
        a, b = words(one), words(other)
        line = [0] * (len(b) + 1)
        for x in a:
            before = 0
            for j, y in enumerate(b):
                line[j + 1], before = before + 1 if x == y else max(line[j + 1], line[j]), line[j + 1]
        return 2 * line[-1] / (len(a) + len(b)) if a and b else 0.0

    return {
        "mean log-probability (baseline)": sum(logprobs) / len(logprobs),
        "maximum token entropy (baseline)": -max((token.entropy for token in tokens), default=0.0),
        "minimum log-probability": min(logprobs),
        "weakest span's probability": of.weakest_probability,
        "mean log-probability, reworded questions": (
            sum(sum(r) / max(len(r), 1) for r in row["reworded"]) / len(REWORDED)
        ),
        "P(True)": row["p_true"][0] - row["p_true"][1],
        "reworded greedy answers: support": support(answer, question, row["reworded_answers"]),
        "5 samples: lexical similarity (ROUGE-L)": sum(overlap(answer, s) for s in samples[:5]) / 5,
        "5 samples: discrete semantic entropy": -semantic_entropy([answer, *samples[:5]], question),
        "5 samples: support (headline)": support(answer, question, samples[:5]),
        "10 samples: lexical similarity (ROUGE-L)": sum(overlap(answer, s) for s in samples) / 10,
        "10 samples: discrete semantic entropy": -semantic_entropy([answer, *samples], question),
        "10 samples: support": support(answer, question, samples),
    }


def auroc(values, right) -> float:
    """Area under the ROC curve by ranks (ties count half)."""
    import numpy as np

    values, right = np.asarray(values, float), np.asarray(right, bool)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positive = right.sum()
    return (ranks[right].sum() - positive * (positive + 1) / 2) / (positive * (len(right) - positive))


def intervals(values, right, baselines, draws: int = 2000) -> tuple:
    """95 % bootstrap intervals: of the AUROC, and of its difference to each baseline on the same draws."""
    import numpy as np

    values, right, baselines = np.asarray(values), np.asarray(right), [np.asarray(b) for b in baselines]
    random, found = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = random.integers(len(right), size=len(right))
        if 0 < right[drawn].sum() < len(right):
            mine = auroc(values[drawn], right[drawn])
            found.append([mine, *(mine - auroc(b[drawn], right[drawn]) for b in baselines)])
    return np.percentile(np.array(found), [2.5, 97.5], axis=0).T


def report(files: list[Path]) -> None:
    """A Markdown table for each set of questions."""
    rows = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["number"]] = row
    for name in SETS:
        mine = [row for _, row in sorted(rows.items()) if row["set"] == name]
        right = [row["right"] for row in mine]
        table = [scores(row) for row in mine]
        print(f"\n{name}: {len(mine)} questions, {sum(right) / len(right):.2f} answered right\n")
        print(
            "| score | AUROC | 95 % | minus mean log-probability | minus maximum entropy |\n| --- | --- | --- | --- |"
            " --- |"
        )
        columns = {key: [row[key] for row in table] for key in table[0]}
        base = list(columns.values())[:2]
        for key, values in columns.items():
            bounds = [f"{low:+.3f} to {high:+.3f}" for low, high in intervals(values, right, base)]
            print(f"| {key} | {auroc(values, right):.3f} | {bounds[0].replace('+', '')} | {bounds[1]} | {bounds[2]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect")
    one.add_argument("out", type=Path)
    one.add_argument("--shard", default="0/1", help="which part of how many")
    one.add_argument("--start", type=int, default=0, help="number of the first question")
    one.add_argument("--model", default="SmolLM2-135M-Instruct")
    one.add_argument("--dtype", default="float32")
    one.add_argument("--temperature", type=float, default=TEMPERATURE, help="of the samples")
    two = commands.add_parser("report")
    two.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "collect":
        collect(options.out, options.shard, options.start, options.model, options.dtype, options.temperature)
    else:
        report(options.files)


if __name__ == "__main__":
    main()
