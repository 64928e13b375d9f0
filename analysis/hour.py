"""One hour of audio, waveform to hidden states: ours against S3PRL's Audio ALBERT of the same shape, in one run.

    python -m saat.analysis.hour [--utterances 240] [--seconds 15] [--batch 4] [--corpus FOLDER]

Both take 80 log-mel each 10 ms (S3PRL's setting), 6 shared layers of 768; batches go to one and the other in turn.
Memory is the peak of a process of its own for each.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import saat
from saat.analysis.subjects import S3PRL, Workload, expert_of

SUBJECTS = (S3PRL, "saat_qk", "saat_ours")


def waveforms(utterances: int, seconds: float, corpus: str | None) -> list[torch.Tensor]:
    """So many utterances of one length; real speech strung together where there is a corpus, else noise."""
    samples = round(16000 * seconds)
    if corpus is None:
        return list(torch.randn(utterances, samples, generator=torch.Generator().manual_seed(0)) * 0.05)
    from saat.upstream.audio import find_audio, read_audio

    parts, total = [], 0
    for path in find_audio(corpus):
        parts.append(read_audio(path))
        total += len(parts[-1])
        if total >= utterances * samples:
            break
    speech = torch.cat(parts)
    speech = speech.repeat(-(-utterances * samples // len(speech)))
    return list(speech[: utterances * samples].view(utterances, samples))


def peak_memory() -> int:
    """Bytes. Linux hands ru_maxrss down to child processes, so the process's own high-water mark is preferred."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--utterances", type=int, default=240)
    p.add_argument("--seconds", type=float, default=15.0)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--corpus", help="folder of audio; noise without")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="S3PRL's must be one of them")
    p.add_argument("--only", choices=SUBJECTS, help="this one alone, for its memory")
    options = p.parse_args()
    saat.register()
    torch.set_num_threads(options.threads)
    wavs = waveforms(options.utterances, options.seconds, options.corpus)
    work = Workload(length=round(100 * options.seconds), end_to_end=True)
    names = (options.only,) if options.only else tuple(options.subjects)
    subjects = {name: expert_of(name, work) for name in names}
    seconds = dict.fromkeys(names, 0.0)
    batches = [wavs[i : i + options.batch] for i in range(0, len(wavs), options.batch)]
    with torch.no_grad():
        for model in subjects.values():  # warm-up
            model(batches[0])
        bar = tqdm(batches, unit="batch", disable=bool(options.only))
        for batch in bar:
            for name, model in subjects.items():
                start = time.perf_counter()
                model(batch)
                seconds[name] += time.perf_counter() - start
            bar.set_postfix({name: f"{spent:.0f}s" for name, spent in seconds.items()})
    if options.only:
        print(json.dumps({"peak_bytes": peak_memory()}))
        return
    audio = len(wavs) * options.seconds
    print(f"{audio / 3600:.2f} h of audio in utterances of {options.seconds:g} s, batches of {options.batch}, "
          f"{options.threads} threads, torch {torch.__version__}")  # fmt: skip
    for name in names:
        short = [
            "--utterances",
            str(3 * options.batch),
            "--seconds",
            str(options.seconds),
            "--batch",
            str(options.batch),
        ]
        command = [
            sys.executable,
            "-m",
            "saat.analysis.hour",
            "--only",
            name,
            *short,
            "--threads",
            str(options.threads),
        ]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peak = json.loads(out.splitlines()[-1])["peak_bytes"] / 2**30
        ratio = seconds[name] / seconds[S3PRL]
        print(f"{name:20} {seconds[name]:8.1f} s  {ratio:5.2f} of S3PRL's  {audio / seconds[name]:7.1f} x real time  "
              f"{peak:5.2f} GiB peak")  # fmt: skip


if __name__ == "__main__":
    main()
