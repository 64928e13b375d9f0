"""Attention maps of many utterances: the clearest of each category (the paper's Figure 4), and where all of them lie in
two dimensions (its Figure 6)."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saat.analysis.drawing import BRIGHTNESS, canvas, frame, show_map, write
from saat.analysis.heads import CATEGORIES, categorise
from saat.analysis.maps import corpus_maps, load_model, some_utterances
from saat.errors import SaatError
from saat.upstream.attention import variant

MARKERS = {"Diagonal": "D", "Sparse": "o", "Increasing": "^", "Decreasing": "v"}
Corpus = str | Path | Iterable[str | Path]


def categories_figure(
    ckpt: str | Path, corpus_paths: Corpus, path: str | Path, utterances: int = 20, examples: int = 3
) -> Path:
    """A column a category, in it the maps the rule finds clearest, of different heads first; flat maps are left out.

    Args:
        ckpt: a checkpoint, in the paper of `saat_qk`.
        corpus_paths: a folder of audio, or several.
        path: the image; its ending says the format.
        utterances: how many are drawn from the corpus.
        examples: maps a category, at most.

    Errors: SaatError when something cannot be read or written, or there is no audio.
    """
    model = load_model(ckpt)
    name = model.model_config.upstream
    # Of each head the clearest map on each utterance: by category, then (head, file).
    best: dict[str, dict[tuple, tuple]] = {category: {} for category in CATEGORIES}
    counts, total = dict.fromkeys(CATEGORIES, 0), 0
    for file, maps in corpus_maps(model, _files(name, corpus_paths, utterances)):
        found = categorise(maps)
        total += found.index.numel()
        for layer, head in np.ndindex(*found.index.shape):
            category = CATEGORIES[found.index[layer, head]]
            counts[category] += 1
            clearness = float(found.clearness[layer, head])
            if not found.flat[layer, head] and clearness > best[category].get((head, file), (0.0,))[0]:
                best[category][head, file] = (clearness, layer, maps[layer, head])
    figure = canvas(2.7 * len(CATEGORIES), 2.95 * examples + 0.9)
    axes = figure.subplots(examples, len(CATEGORIES), squeeze=False)
    for column, category in enumerate(CATEGORIES):
        chosen = _clearest(best[category], examples)
        for axis, (head, layer, file, one) in zip(axes[:, column], chosen, strict=False):
            show_map(axis, one)
            frame(axis, category)
            where = f"layer {layer + 1}, head {head + 1}\n{file.stem}" if file else f"head {head + 1}"
            axis.set_xlabel(where, fontsize=8)
        for axis in axes[len(chosen) :, column]:
            axis.axis("off")
        if not chosen:
            axes[0, column].text(0.5, 0.5, "does not occur\n(or only flat)", ha="center", va="center", fontsize=10)
        axes[0, column].set_title(f"{category}\n{counts[category] / total:.0%} of {total} maps", fontsize=11)
    figure.suptitle(f"{name}: the clearest maps of each category\n{BRIGHTNESS}", fontsize=9)
    return write(figure, path)


def _clearest(maps: dict[tuple, tuple], count: int) -> list[tuple]:
    """(head, layer, file, map) of the clearest: one of each head, then more of the same."""
    ordered = sorted(maps.items(), key=lambda item: -item[1][0])
    seen: Counter = Counter()
    ranked = []
    for (head, file), (clearness, layer, one) in ordered:
        ranked.append((seen[head], -clearness, len(ranked), (head, layer, file, one)))
        seen[head] += 1
    return [chosen for *_, chosen in sorted(ranked, key=lambda item: item[:3])[:count]]


def embedding_figure(
    ckpt: str | Path, corpus_paths: Corpus, path: str | Path, utterances: int = 30, tokens: int = 100
) -> Path:
    """Every head of every layer on every utterance as a point: maps flattened, PCA to 50 dimensions, t-SNE to 2.

    Nothing is averaged. The maps are those of the first `tokens` tokens of each utterance (at most the model's
    `max_length`), so that all have one size; shorter utterances are left out. PCA and t-SNE (perplexity 30) start
    from a fixed seed. A colour a head, a marker a category.

    Args:
        ckpt: a checkpoint, in the paper of `saat_qk`.
        corpus_paths: a folder of audio, or several.
        path: the image; its ending says the format.
        utterances: how many are drawn from the corpus.
        tokens: the size of a map.

    Errors: SaatError when something cannot be read or written, scikit-learn is not installed, the weights do not depend
    on the input, or fewer than two utterances are long enough.
    """
    model = load_model(ckpt)
    name = model.model_config.upstream
    if not variant(name).input_dependent:
        raise SaatError(f"{name} has the same maps for every utterance: this figure needs another, such as saat_qk")
    tokens = min(tokens, model.model_config.transformer.max_length)
    kept = [maps for _, maps in corpus_maps(model, _files(name, corpus_paths, utterances), tokens)]
    if len(kept) < 2:
        raise SaatError(f"fewer than two utterances of at least {tokens} tokens: take fewer tokens or more utterances")
    maps = torch.stack(kept)  # (utterances, layers, A, n, n)
    categories = categorise(maps).index.flatten().numpy()
    heads = torch.arange(maps.shape[2]).expand(maps.shape[:3]).flatten().numpy()
    points = embed(maps.flatten(0, 2).flatten(1).float().numpy())
    figure = _scatter(points, heads, categories)
    figure.suptitle(
        f"{name}: attention maps of {len(heads)} (utterance, layer, head), {len(kept)} utterances, {tokens} tokens; "
        "PCA, then t-SNE",
        fontsize=10,
    )
    return write(figure, path)


def embed(flat: np.ndarray) -> np.ndarray:
    """PCA to at most 50 dimensions, then t-SNE to 2, from a fixed seed: (points, dimensions) to (points, 2)."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise SaatError('this figure needs scikit-learn: pip install "s3prl-saat[analysis]"') from error
    few = PCA(min(50, *flat.shape), svd_solver="randomized", random_state=0).fit_transform(flat)
    return TSNE(2, perplexity=min(30, (len(few) - 1) / 3), init="pca", random_state=0).fit_transform(few)


def _files(upstream: str, corpus_paths: Corpus, utterances: int) -> list[Path]:
    return some_utterances(corpus_paths, utterances) if variant(upstream).input_dependent else []


def _scatter(points: np.ndarray, heads: np.ndarray, categories: np.ndarray) -> Figure:
    figure = canvas(9.5, 7)
    axis = figure.subplots()
    palette = [to_rgb(colour) for colour in (*(f"C{i}" for i in range(10)), "black", "gold")]
    colours = np.array([palette[head % len(palette)] for head in heads])
    for i, category in enumerate(CATEGORIES):
        chosen = categories == i
        axis.scatter(*points[chosen].T, c=colours[chosen], marker=MARKERS[category], s=26, linewidths=0)
    axis.set_xticks([])
    axis.set_yticks([])
    by_head = [
        Line2D([], [], marker="s", linestyle="", color=palette[head % len(palette)], label=f"head {head + 1}")
        for head in np.unique(heads)
    ]
    by_category = [
        Line2D(
            [],
            [],
            marker=MARKERS[name],
            linestyle="",
            color="dimgray",
            label=f"{name} ({np.mean(categories == i):.0%})",
        )
        for i, name in enumerate(CATEGORIES)
    ]
    figure.legend(handles=[*by_head, *by_category], loc="outside right center", fontsize=9, frameon=False)
    return figure
