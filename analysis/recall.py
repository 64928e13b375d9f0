"""How many of a query's true top keys hashing finds, by the number of hashes.

`python -m saat.analysis.recall CHECKPOINT --corpus FOLDER` takes the queries and keys of each layer of a pre-trained
LSH variant on real speech; without a checkpoint, of random ones. Chance is k / n.
"""

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from saat.upstream.attention import REGISTRY, variant
from saat.upstream.attention.lsh import LSH, among_largest
from saat.upstream.audio import find_audio, read_audio
from saat.upstream.config import TransformerConfig
from saat.upstream.expert import UpstreamExpert

HASHES = (1, 4, 16, 64)
NAMES = [name for name, entry in REGISTRY.items() if entry.attention and issubclass(entry.attention, LSH)]


def recall(module: LSH, q: Tensor, n_hashes: int) -> float:
    """The share of the k keys with the largest q . k that `select_keys` finds. q (A, n, d), keys that are queries."""
    n = q.shape[1]
    config = replace(module.config, n_hashes=n_hashes, vector_rows=max(n, module.config.vector_rows))
    other = type(module)(TransformerConfig(hidden_size=q.shape[0] * q.shape[2], num_attention_heads=q.shape[0]), config)
    lengths = torch.tensor([n])
    true = among_largest(q @ q.transpose(-1, -2), config.num_keys)
    found = other.eval().select_keys(q[None], lengths, other.prepare(lengths, n, q))[0]
    return float(found[true].float().mean())


@torch.no_grad()
def queries_of(upstream: UpstreamExpert, wavs: list[Tensor]) -> list[Tensor]:
    """(A, n, d) of each utterance and layer."""
    layers = [layer.attention for layer in upstream.encoder.layers()]
    states = [upstream([wav])["hidden_states"][:-1] for wav in wavs]
    return [a.split(a.query(state))[0] for own in states for a, state in zip(layers, own, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--upstream", choices=NAMES, default="saat_xbox", help="of the checkpoint")
    parser.add_argument("--corpus")
    parser.add_argument("--utterances", type=int, default=8)
    options = parser.parse_args()
    if options.checkpoint:
        upstream = UpstreamExpert(options.upstream, ckpt=options.checkpoint).eval()
        files = find_audio(options.corpus)
        wavs = [read_audio(path) for path in files[:: len(files) // options.utterances][: options.utterances]]
        queries = queries_of(upstream, wavs)
    else:
        queries = [torch.randn(12, 500, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    tokens = sum(q.shape[1] for q in queries) / len(queries)
    print(f"{tokens:.0f} tokens on average, chance {sum(min(1, 32 / q.shape[1]) for q in queries) / len(queries):.3f}")
    print("| upstream | " + " | ".join(f"{n} hashes" for n in HASHES) + " |")
    for name in NAMES:
        entry = variant(name)
        size = TransformerConfig(hidden_size=queries[0].shape[0] * queries[0].shape[2])
        module = entry.attention(size, entry.config())
        found = [sum(recall(module, q, n) for q in queries) / len(queries) for n in HASHES]
        print(f"| {name} | " + " | ".join(f"{share:.3f}" for share in found) + " |", flush=True)


if __name__ == "__main__":
    main()
