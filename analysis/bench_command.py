"""The command `saat bench`."""

import argparse
from pathlib import Path

import torch

import saat
from saat.analysis.bench import as_table, available, bench, write_json
from saat.analysis.bench_plot import plot
from saat.analysis.subjects import S3PRL, VARIANTS, Workload
from saat.downstream.corpus import some
from saat.errors import SaatError, did_you_mean
from saat.pretrain.device import PRECISIONS, choose_device
from saat.upstream.audio import AudioError, find_audio, read_audio


def run(options: argparse.Namespace) -> list[dict]:
    """Times what the options say, prints a table a length, writes JSON and plot.

    Errors: SaatError for an option that makes no sense, or where a variant is not what its definition says.
    """
    saat.register()  # S3PRL's modules may need what newer libraries lack
    dtype = PRECISIONS.get(options.dtype) or torch.float32
    if options.dtype not in PRECISIONS:
        raise SaatError(f"--dtype {options.dtype}: {did_you_mean(options.dtype, PRECISIONS)}")
    threads = options.threads if options.threads is not None else torch.get_num_threads()
    if min(*options.length, options.batch, options.rounds, threads) < 1:
        raise SaatError("--length, --batch, --rounds and --threads must be at least 1")
    torch.set_num_threads(threads)
    names = options.upstreams or [*((S3PRL,) if options.end_to_end else available()), *VARIANTS]
    work = Workload(
        batch=options.batch,
        hidden=options.hidden,
        train=options.train,
        ragged=options.ragged,
        dtype=dtype,
        device=choose_device(options.device),
        end_to_end=options.end_to_end,
        speech=speech(options.corpus, options.batch * max(options.length) * 480) if options.corpus else None,
    )
    found = []
    for length in options.length:
        entries = bench(names, work.with_length(length), options.rounds)
        print(as_table(entries), flush=True)
        found += entries
        if options.json:  # after each length, so that an interrupted run has left something
            write_json(found, Path(options.json))
    if options.plot:
        plot(found, Path(options.plot))
    return found


def speech(corpus: str, samples: int) -> torch.Tensor:
    """Real speech strung together: (at least `samples`, where the corpus has as many,); bad files are left out.

    Errors: SaatError where every file is bad.
    """
    parts, bad, total = [], [], 0
    for path in find_audio(corpus):
        try:
            parts.append(read_audio(path))
        except AudioError as error:
            bad.append(str(error))
            continue
        total += len(parts[-1])
        if total >= samples:
            break
    if not parts:
        raise SaatError(f"--corpus {corpus}: none of its files can be read: {some(bad)}")
    return torch.cat(parts)
