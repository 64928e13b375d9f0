"""`saat bench`: every variant and its peers, in turn, in one process: seconds, ratios, memory, operations."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from saat.analysis.measure import in_turn, matrix_product, middle, operations, peak_bytes, ratios
from saat.analysis.subjects import INT8, PEERS, S3PRL, VARIANTS, Workload, run_of
from saat.errors import SaatError
from saat.files import write_text
from saat.upstream.encoder import AudioAlbert

REFERENCE = "saat_qk"
MATMUL = "matrix product"


def gate(name: str, work: Workload) -> None:
    """The variant's fast path against its definition, on this machine, at this size, before anything is timed.

    Errors: SaatError where they differ.
    """
    work = replace(work, batch=min(work.batch, 2), length=min(work.length, 1500), ragged=True, dtype=torch.float32)
    config = work.config(name)
    torch.manual_seed(0)
    attention = AudioAlbert(config).to(work.device).eval().layer.attention
    lengths = work.lengths()
    hidden = torch.randn(work.batch, work.length, config.transformer.hidden_size).to(work.device)
    with torch.no_grad():
        fast = attention(hidden, lengths)
        value = attention.split(attention.value(hidden))
        slow = (attention.weights(hidden, lengths) @ value).transpose(1, 2).flatten(2)
    real = (torch.arange(work.length) < lengths[:, None]).to(work.device)
    worst = float((fast - slow)[real].abs().max())
    if not worst < 1e-4:
        raise SaatError(f"{name}: forward and weights @ V differ by {worst:.1e} on this machine: nothing was timed")


def bench(names: list[str], work: Workload, rounds: int, memory: bool = True, progress: bool = True) -> list[dict]:
    """Times subjects in turn.

    Args:
        names: upstreams and peers; saat_qk and S3PRL's Audio ALBERT are the references, where they are among them.
        work: the batch.
        rounds: after one to warm up.
        memory: measure the peak as well, one more call each.

    Returns:
        An object a subject: upstream, mode, length, batch, ragged, dtype, device, threads; seconds, and their spread;
        ratio_to_qk and ratio_to_s3prl, medians of the rounds' ratios; peak_bytes; flops; roofline, the time that the
        operations would take at the matrix products' rate, as a share of the time taken; tokens_per_second;
        times_real_time.

    Errors: SaatError for an unknown subject, or where a variant is not what its definition says.
    """
    for name in names:
        if name in VARIANTS:
            gate(name, work)
    runs = {name: run_of(name, work) for name in names}
    transformer = work.config(REFERENCE).transformer
    product, product_operations = matrix_product(
        work.length * work.batch, transformer.hidden_size, transformer.intermediate_size, work.dtype, work.device
    )
    times = in_turn({MATMUL: product, **runs}, rounds, work.device, progress)
    rate = product_operations / middle(times[MATMUL])[0]
    tokens = int(work.lengths().sum())
    audio = tokens * (0.01 if work.end_to_end else 0.03)  # seconds
    found = []
    for name, run in runs.items():
        median, spread = middle(times[name])
        # What is quantised is not counted: the operations are those of the same in float32.
        flops = operations(run_of(name.removesuffix(INT8), work) if name.endswith(INT8) else run)
        entry = {
            "upstream": name,
            "mode": work.mode,
            "end_to_end": work.end_to_end,
            "length": work.length,
            "batch": work.batch,
            "hidden": work.hidden,
            "ragged": work.ragged,
            "dtype": str(work.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(work.device) if "cuda" in work.device else platform.machine(),
            "threads": torch.get_num_threads(),
            "seconds": median,
            "spread": spread,
            "ratio_to_qk": None,
            "ratio_to_s3prl": None,
            "peak_bytes": peak_bytes(run, work.device) if memory else None,
            "flops": flops,
            "roofline": flops / rate / median,
            "matmul_flops_per_second": rate,
            "tokens_per_second": tokens / median,
            "times_real_time": audio / median,
        }
        for key, reference in (("ratio_to_qk", REFERENCE), ("ratio_to_s3prl", S3PRL)):
            if reference in times:
                entry[key] = middle(ratios(times[name], times[reference]))[0]
        found.append(entry)
    return found


def as_table(entries: list[dict]) -> str:
    """For reading in a terminal."""
    rows = [("upstream", "tokens", "ms", "+-", "of qk", "of S3PRL", "MB", "GFLOP", "roofline", "x real time")]
    for e in entries:
        peak = "-" if e["peak_bytes"] is None else f"{e['peak_bytes'] / 1e6:.0f}"
        of = ["-" if e[key] is None else f"{e[key]:.3f}" for key in ("ratio_to_qk", "ratio_to_s3prl")]
        rows.append(
            (
                e["upstream"],
                str(e["length"]),
                f"{1000 * e['seconds']:.1f}",
                f"{1000 * e['spread']:.1f}",
                *of,
                peak,
                f"{e['flops'] / 1e9:.1f}",
                f"{e['roofline']:.2f}",
                f"{e['times_real_time']:.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    first = entries[0]
    what = f"{first['mode']}, waveforms to hidden states" if first["end_to_end"] else first["mode"]
    head = (
        f"{what}, batch {first['batch']}{', ragged' if first['ragged'] else ''}, {first['dtype']}, "
        f"{first['device']}, {first['threads']} threads, torch {torch.__version__}; "
        "medians, +- half the distance of the quartiles"
    )
    return "\n".join([head, *lines])


def write_json(entries: list[dict], path: Path) -> None:
    """Errors: SaatError when it cannot be written."""
    write_text(path, json.dumps(entries, indent=1) + "\n")


def available(peers: tuple[str, ...] = PEERS) -> list[str]:
    """The peers whose packages are installed."""
    import importlib.util

    return [name for name in peers if name != "hf_albert" or importlib.util.find_spec("transformers")]
