"""Compare the decoding speed of mt with CTranslate2 and Hugging Face's `generate`.

Usage: python scripts/bench/decode.py MODEL SOURCE REFERENCE [--lines 1000] [--rounds 3]
           [--beams 1,5] [--batch-sizes 1,16,64,256]
           [--engines mt-fp32,mt-int8,ct2-float32,ct2-int8,hf-fp32] [--device cpu] [--json FILE]

Engines are mt-PRECISION, ct2-TYPE and hf-PRECISION. CTranslate2 needs the extra `ct2` and runs an
export of the model; Hugging Face needs the package transformers and runs the same weights.
`--device cuda` puts mt on a GPU and leaves the others on the CPU.

Each round runs every engine once, each in a separate process. All engines get the same token ids:
tokenizing and loading are not timed, but the start of mt's worker processes is. Batch size 1
translates one sentence at a time (at most 100 sentences) and measures latency, with either one
thread or all, whichever is faster. For other batch sizes, CTranslate2 uses either one translator
with all threads or one translator per thread, whichever is faster. Target tokens are those of the
best hypothesis, without the end-of-sentence token. Machines are noisy: quote medians, and only
ratios from the same run.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mt import Translator
from mt.convert.ctranslate2 import CTranslate2Engine, export_ctranslate2
from mt.convert.huggingface import TransformersEngine, export_huggingface
from mt.data.batch import pad_rows
from mt.data.sources import read_text
from mt.data.tokenizer import EOS_ID, PAD_ID
from mt.decode.loading import load_model
from mt.decode.search import max_output_len
from mt.evaluation import build_metrics, corpus_scores
from mt.runtime.memory import peak_process_memory

LATENCY_LINES = 100
# Takes source ids, and returns the ids of the best hypotheses.
Search = Callable[[Sequence[list[int]]], list[list[int]]]
# Takes a beam size and a batch size, and yields (name, search) for each way to use the threads.
Engine = Callable[[int, int], Iterator[tuple[str, Search]]]


def mt_engine(model: str, precision: str, device: str) -> Engine:
    """Return the engine for mt. On a CPU, it uses worker processes, except for single sentences.

    On a GPU, only `batch_size` limits the size of a batch.
    """
    threads = torch.get_num_threads()

    def variants(beam_size: int, batch_size: int) -> Iterator[tuple[str, Search]]:
        ways = [(1, 1), (threads, 1)] if batch_size == 1 else [(threads, None)]
        limits = {"beam_size": beam_size, "batch_size": batch_size}
        if device != "cpu":
            ways, limits = [(threads, 1)], {**limits, "max_tokens": batch_size * 512}
            torch.cuda.reset_peak_memory_stats()
        for count, workers in ways:
            translator = Translator.load(
                model, device=device, precision=precision, threads=count, workers=workers, **limits
            )
            number = translator.workers.count
            name = f"{number} x {max(1, translator.workers.threads // number)}"
            yield (
                name if device == "cpu" else device,
                lambda sources, translator=translator: [
                    hyps[0].tokens for hyps in translator.search(sources)
                ],
            )

    return variants


def ct2_engine(model: str, folder: str, compute_type: str) -> Engine:
    """Return the engine for CTranslate2, called through its Python interface.

    Its variants are named TRANSLATORS x THREADS.
    """
    loaded, threads = load_model(Path(model), torch.device("cpu")), torch.get_num_threads()

    def variants(beam_size: int, batch_size: int) -> Iterator[tuple[str, Search]]:
        ways = [(1, 1), (1, threads)] if batch_size == 1 else [(1, threads), (threads, 1)]
        for inter, intra in ways:
            decode = loaded.config.decode.model_copy(
                update={"beam_size": beam_size, "batch_size": batch_size}
            )
            engine = CTranslate2Engine(
                Path(folder), loaded.tokenizer, decode, inter, intra, compute_type
            )
            limit = max_output_len(decode.longest_src, decode.max_len_a, decode.max_len_b)

            def search(
                sources: Sequence[list[int]], engine: CTranslate2Engine = engine, limit: int = limit
            ) -> list[list[int]]:
                return [tokens for tokens, _ in engine.translate_batch(sources, limit)]

            yield f"{inter} x {intra}", search

    return variants


def hf_engine(model: str, folder: str, precision: str) -> Engine:
    """Return the engine for `generate` with Hugging Face's Pegasus, our pre-norm architecture."""
    loaded = load_model(Path(model), torch.device("cpu"))
    decode = loaded.config.decode
    export_huggingface(loaded, Path(f"{folder}.hf"), "pegasus")
    pegasus = TransformersEngine(Path(f"{folder}.hf"), decode).model
    shutil.rmtree(f"{folder}.hf")
    if precision == "bf16":
        pegasus = pegasus.bfloat16()

    def variants(beam_size: int, batch_size: int) -> Iterator[tuple[str, Search]]:
        @torch.inference_mode()
        def search(sources: Sequence[list[int]]) -> list[list[int]]:
            order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
            results: list[list[int]] = [[] for _ in sources]
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                src = pad_rows([sources[i] for i in batch], suffix=EOS_ID)
                limit = max_output_len(src.shape[1], decode.max_len_a, decode.max_len_b)
                hyps = pegasus.generate(
                    input_ids=src,
                    attention_mask=(src != PAD_ID).long(),
                    num_beams=beam_size,
                    max_new_tokens=limit,
                    length_penalty=1.0,
                    do_sample=False,
                )
                for i, hyp in zip(batch, hyps.tolist(), strict=True):
                    results[i] = [token for token in hyp[1:] if token not in (PAD_ID, EOS_ID)]
            return results

        yield f"1 x {torch.get_num_threads()}", search

    return variants


def measure(
    engine: Engine, sources: Sequence[list[int]], beams: list[int], sizes: list[int]
) -> Iterator[dict[str, Any]]:
    """Measure every variant of an engine at every beam size and batch size."""
    for beam_size in beams:
        for batch_size in sizes:
            part = sources[:LATENCY_LINES] if batch_size == 1 else sources
            for name, search in dict(engine(beam_size, batch_size)).items():
                search(part[:64] if batch_size > 1 else part[:3])  # warm-up
                start = time.perf_counter()
                hyps = search(part) if batch_size > 1 else [search([source])[0] for source in part]
                seconds = time.perf_counter() - start
                yield {
                    "beam": beam_size,
                    "batch": batch_size,
                    "threads": name,
                    "seconds": seconds,
                    "sentences": len(part),
                    "tokens": sum(map(len, hyps)),
                    "peak_mib": peak_memory() / 2**20,
                    "hyps": hyps,
                }


def peak_memory() -> int:
    """Return the peak bytes of GPU tensors or, on a CPU, of this process and its workers.

    This assumes one worker per thread, and that each worker is as large as the largest one.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return peak_process_memory() + largest * torch.get_num_threads()


def child(args: argparse.Namespace, name: str, folder: str) -> None:
    """Measure one engine, and print a JSON line for each measurement."""
    kind, _, precision = name.partition("-")
    engine = {
        "mt": lambda: mt_engine(args.model, precision, args.device),
        "ct2": lambda: ct2_engine(args.model, folder, precision),
        "hf": lambda: hf_engine(args.model, folder, precision),
    }[kind]()
    tokenizer = load_model(Path(args.model), torch.device("cpu")).tokenizer
    sources = tokenizer.encode_src(read_text(args.source)[: args.lines])
    refs = read_text(args.reference)
    for result in measure(
        engine,
        sources,
        *([int(n) for n in option.split(",")] for option in (args.beams, args.batch_sizes)),
    ):
        hyps = [tokenizer.decode_tgt(hyp) for hyp in result.pop("hyps")]
        score = corpus_scores(hyps, [refs[: len(hyps)]], build_metrics(["bleu"]))["bleu"]
        print(
            json.dumps(
                {"engine": name, **result, "bleu": score.value, "signature": score.signature}
            ),
            flush=True,
        )


def table(results: list[dict[str, Any]]) -> Table:
    """Make a table of medians over rounds that shows the fastest variant of each engine."""
    measures = ("target tokens/s per round", "median", "sentences/s", "ms per sentence")
    columns = ("engine", "beam", "batch", "threads", *measures, "peak MiB", "BLEU")
    rendered = Table(*columns)
    for engine, beam, batch in dict.fromkeys((r["engine"], r["beam"], r["batch"]) for r in results):
        same = [r for r in results if (r["engine"], r["beam"], r["batch"]) == (engine, beam, batch)]
        variants = [
            [r for r in same if r["threads"] == threads]
            for threads in dict.fromkeys(r["threads"] for r in same)
        ]
        best = max(variants, key=lambda rounds: statistics.median(map(token_rate, rounds)))
        rates = list(map(token_rate, best))
        per_sentence = statistics.median(r["seconds"] / r["sentences"] for r in best)
        rendered.add_row(
            engine,
            str(beam),
            str(batch),
            best[0]["threads"],
            ", ".join(f"{rate:,.0f}" for rate in rates),
            f"{statistics.median(rates):,.0f}",
            f"{1 / per_sentence:,.0f}",
            f"{1000 * per_sentence:.1f}",
            f"{max(r['peak_mib'] for r in best):,.0f}",
            f"{best[0]['bleu']:.2f}" if batch > 1 else "",
        )
    return rendered


def token_rate(result: dict[str, Any]) -> float:
    """Return target tokens/s."""
    rate: float = result["tokens"] / result["seconds"]
    return rate


def main() -> None:
    """Run every engine once per round, each in a separate process, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "source", "reference"):
        parser.add_argument(name)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beams", default="1,5")
    parser.add_argument("--batch-sizes", default="1,16,64,256")
    parser.add_argument("--engines", default="mt-fp32,mt-int8,ct2-float32,ct2-int8,hf-fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args, *args.child)
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if "ct2-" in args.engines:
            loaded = load_model(Path(args.model), torch.device("cpu"))
            export_ctranslate2(loaded, Path(folder) / "ct2")
        for number in range(args.rounds):
            for engine in args.engines.split(","):
                command = [sys.executable, *sys.argv, "--child", engine, f"{folder}/ct2"]
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                    assert process.stdout is not None
                    for line in process.stdout:
                        results.append({"round": number, **json.loads(line)})
                        print(line, end="", file=sys.stderr, flush=True)
                if process.returncode:
                    sys.exit(f"{engine} failed")
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1) + "\n")
    Console(width=160).print(table(results))
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {results[0]['signature']}"
    )


if __name__ == "__main__":
    main()
