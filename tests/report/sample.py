"""Make up data for report pages: two runs and two systems, with every part of the page."""

import base64
import math
import random
from typing import Any


def curves(seed: int, final: float) -> dict[str, Any]:
    """Return training curves whose loss falls to `final`, with a validation every 500 updates."""
    rng = random.Random(seed)
    steps, valid = list(range(50, 10_001, 50)), list(range(500, 10_001, 500))
    loss = [final + 6 * math.exp(-step / 900) for step in steps]
    bleu = [42 * (1 - math.exp(-step / 1800)) + (5 - final) + rng.gauss(0, 0.3) for step in valid]
    return {
        "train": {
            "step": steps,
            "loss": [value + 0.3 + rng.gauss(0, 0.08) for value in loss],
            "lr": [1e-3 * min(step / 1000, (1000 / step) ** 0.5) for step in steps],
            "tokens_per_second": [2900 + rng.gauss(0, 60) for _ in steps],
        },
        "valid": {
            "step": valid,
            "loss": [loss[step // 50 - 1] for step in valid],
            "bleu": bleu,
            "chrf": [value + 19 for value in bleu],
        },
    }


def corpus(count: int, systems: int, seed: int = 0) -> dict[str, Any]:
    """Return sentences of made-up words. Each system changes and drops some reference words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abdefgiklmnorstu", k=rng.randint(2, 9))) for _ in range(3000)]
    refs = [
        " ".join(rng.choices(words, k=rng.randint(4, 28))).capitalize() + "." for _ in range(count)
    ]

    def translated(ref: str) -> str:
        said = [
            rng.choice(words) if rng.random() < 0.2 else word
            for word in ref.split()
            if rng.random() > 0.05
        ]
        return " ".join(said) or "."

    return {
        "src": [" ".join(reversed(ref.split())) for ref in refs],
        "ref": refs,
        "hyps": [[translated(ref) for ref in refs] for _ in range(systems)],
        "scores": [[round(rng.uniform(20, 95), 2) for _ in refs] for _ in range(systems)],
        "flags": [[["copy"] if rng.random() < 0.05 else [] for _ in refs] for _ in range(systems)],
    }


def weights(
    layers: int, heads: int, queries: int, keys: int, masked: bool = False
) -> dict[str, Any]:
    """Return attention weights whose rows sum to 1. Each head attends further to the right."""
    data = bytearray()
    for layer in range(layers):
        for head in range(heads):
            for q in range(queries):
                row = [
                    0.0 if masked and k > q else math.exp(-abs(q + head - k) / (1 + layer))
                    for k in range(keys)
                ]
                data += bytes(round(255 * value / sum(row)) for value in row)
    return {"shape": [layers, heads, queries, keys], "data": base64.b64encode(bytes(data)).decode()}


def attention(sentence: int, system: int = 1) -> dict[str, Any]:
    src = ["▁Ein", "▁schwarzer", "▁Hund", "▁läuft", "▁am", "▁Strand", "spazier", "gang", "."]
    tgt = ["▁A", "▁black", "▁dog", "▁runs", "▁along", "▁the", "▁beach", "."]
    return {
        "sentence": sentence,
        "system": system,
        "src_tokens": src,
        "read_tokens": ["<s>", *tgt[:-1]],
        "written_tokens": tgt,
        "encoder": weights(2, 4, len(src), len(src)),
        "decoder": weights(2, 4, len(tgt), len(tgt), masked=True),
        "cross": weights(2, 4, len(tgt), len(src)),
    }


def scored(name: str, bleu: float, copies: int) -> dict[str, Any]:
    def score(title: str, value: float, half: float, signature: str) -> dict[str, Any]:
        return {
            "name": title,
            "value": value,
            "interval": [value - half, value + half],
            "signature": signature,
        }

    return {
        "name": name,
        "length_ratio": 0.98,
        "scores": [
            score("BLEU", bleu, 1.2, "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"),
            score(
                "chrF",
                bleu + 19,
                0.8,
                "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0",
            ),
            score(
                "TER",
                82 - bleu,
                1.1,
                "nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:2.6.0",
            ),
        ],
        "diagnosis": [
            {"label": "untranslated copies", "count": copies, "flag": "copy"},
            {"label": "empty", "count": 0, "flag": "empty"},
        ],
    }


def scored_test(name: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Return a test set with two systems and all parts of the page."""
    sentences = corpus(count, 2, seed)
    copies = [sum("copy" in flags for flags in system) for system in sentences["flags"]]
    verdict = "deeper is better than base by 0.62 BLEU (p = 0.012)."
    labels = ["1-10", "11-15", "16-20", "21-25", "26-30", "over 30"]
    return {
        "name": name,
        "num_sentences": count,
        "precision": "fp32",
        "systems": [scored("base", 40.41, copies[0]), scored("deeper", 41.03, copies[1])],
        "comparisons": [
            {
                "a": 0,
                "b": 1,
                "wins": 300,
                "losses": 250,
                "ties": 450,
                "verdict": verdict,
                "metrics": [
                    {
                        "metric": "BLEU",
                        "difference": 0.62,
                        "p_values": {
                            "paired bootstrap": 0.012,
                            "paired approximate randomization": 0.02,
                        },
                    },
                    {
                        "metric": "chrF",
                        "difference": 0.2,
                        "p_values": {
                            "paired bootstrap": None,
                            "paired approximate randomization": None,
                        },
                    },
                ],
            },
        ],
        "buckets": [
            {
                "title": "Source length in words",
                "labels": labels,
                "counts": [310, 402, 180, 77, 31, 0],
                "metric": "BLEU",
                "values": [
                    [44.1, 41.2, 39.0, 36.2, 33.0, None],
                    [44.0, 42.0, 40.4, 38.1, 36.9, None],
                ],
            },
            {
                "title": "Rarest word in training",
                "labels": ["never", "1", "2-9", "10-99", "100+"],
                "counts": [61, 90, 240, 411, 198],
                "metric": "chrF",
                "values": [[48.2, 51.0, 56.9, 60.3, 64.4], [49.9, 52.4, 57.0, 61.2, 64.2]],
            },
        ],
        "sentences": sentences,
        "attention": [attention(3), attention(17)],
    }


def report() -> dict[str, Any]:
    """Return the report data of two runs on two test sets."""
    provenance = {
        "training data": "data/train.de.gz (cd4a611987895a59)",
        "weights": "201f5053c1447136" * 4,
        "torch": "2.13.0",
    }
    return {
        "title": "base and deeper",
        "generated": "2026-11-23 10:00 UTC",
        "version": "0.1.0",
        "runs": [
            {
                "name": "base",
                "path": "runs/base",
                "state": "done",
                "curves": curves(1, 1.5),
                "best_step": 9500,
                "provenance": provenance,
            },
            {
                "name": "deeper",
                "path": "runs/deeper",
                "state": "done",
                "curves": curves(2, 1.4),
                "best_step": 10000,
                "provenance": {**provenance, "weights": "5cd4a61198789515" * 4},
            },
        ],
        "config_differences": [
            {"key": "model.encoder_layers", "values": [3, 6]},
            {"key": "optim.lr", "values": [0.001, None]},
        ],
        "tests": [scored_test("test_2016_flickr", 120), scored_test("news", 45, seed=1)],
    }
