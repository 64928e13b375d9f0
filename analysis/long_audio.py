"""Long audio in one call: how much faster than real time, and how much memory.

    python -m saat.analysis.long_audio [--upstream saat_ours] [--minutes 10 60] [--corpus FOLDER]

The paper's model (random weights), waveform to hidden states. Each length runs in a process of its own, whose peak
memory is set against what it returns: seven hidden states of a token each 30 ms, 43 MB a minute of audio in float32.
"""

import argparse
import json
import subprocess
import sys
import time

import torch

import saat
from saat.analysis.hour import peak_memory, waveforms
from saat.upstream import hubconf
from saat.upstream.config import SAMPLE_RATE


def one_call(upstream: str, minutes: float, corpus: str | None, threads: int) -> dict[str, float]:
    """Seconds of the call, bytes returned, the process's peak before and after, for one utterance."""
    saat.register()
    torch.set_num_threads(threads)
    wav = waveforms(1, 60 * minutes, corpus)[0]
    model = getattr(hubconf, f"{upstream}_untrained")().eval()
    with torch.no_grad():
        model([wav[: 20 * SAMPLE_RATE]])  # warm-up
        before, start = peak_memory(), time.perf_counter()
        states = model([wav])["hidden_states"]
    seconds = time.perf_counter() - start
    returned = sum(state.nbytes for state in states)
    return {"seconds": seconds, "returned": returned, "before": before, "peak": peak_memory()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--upstream", default="saat_ours")
    p.add_argument("--minutes", nargs="+", type=float, default=[10, 60])
    p.add_argument("--corpus", help="folder of audio; noise without")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--alone", action="store_true", help="in this process; one length")
    o = p.parse_args()
    if o.alone:
        print(json.dumps(one_call(o.upstream, o.minutes[0], o.corpus, o.threads)))
        return
    print(f"{o.upstream}, one utterance a call, {o.threads} threads, torch {torch.__version__}")
    for minutes in o.minutes:
        command = [sys.executable, "-m", "saat.analysis.long_audio", "--alone", "--minutes", str(minutes)]
        command += [
            "--upstream",
            o.upstream,
            "--threads",
            str(o.threads),
            *(["--corpus", o.corpus] if o.corpus else []),
        ]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        own = found["peak"] - found["before"] - found["returned"]
        print(
            f"{minutes:g} min: {found['seconds']:.1f} s, {60 * minutes / found['seconds']:.0f} x real time; "
            f"peak {found['peak'] / 1e9:.2f} GB, of which {found['returned'] / 1e9:.2f} GB are returned, "
            f"{found['before'] / 1e9:.2f} GB were there before the call and {own / 1e9:.2f} GB are the call's own",
            flush=True,
        )


if __name__ == "__main__":
    main()
