"""Features against S3PRL's: `python -m saat.analysis.features_speed [FOLDER]` prints times, their ratio, differences.

What is compared is one batch of pre-training, crops of 15 s on their way from samples to normalised log-mel with
deltas. S3PRL's side is what its `OnlineAcousticDataset` does with a batch: each crop scaled to its level, all padded,
then `OnlinePreprocessor` for `input` and `target`, both of them mel. Ours is what pre-training does: `Features`, once,
for the target is the input. Decoding is in neither. Both see the same crops, in turn, with the same number of threads.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import saat
from saat.analysis.hour import waveforms
from saat.upstream.config import AudioConfig
from saat.upstream.features import Features


def s3prl_features(config: AudioConfig) -> Callable[[list[Tensor]], Tensor]:
    """S3PRL's way from crops to (crops, frames, dims)."""
    saat.register()  # S3PRL needs it to import on the newest stack
    from s3prl.upstream.baseline.preprocessor import get_preprocessor

    feat = {"feat_type": "mel", "log": True, "delta": config.delta, "cmvn": config.cmvn}
    audio = {"win_ms": config.win_ms, "hop_ms": config.hop_ms, "n_freq": config.n_freq, "n_mels": config.n_mels}
    preprocessor, _, _ = get_preprocessor({**audio, "input": {**feat, "channel": 0}, "target": {**feat, "channel": 1}})

    def features(wavs: list[Tensor]) -> Tensor:
        preprocessor.to(wavs[0].dtype)
        level = 10 ** (config.target_level / 20)
        scaled = [wav * (level / (wav.pow(2).mean().pow(0.5) + 1e-10)) for wav in wavs]
        return preprocessor(pad_sequence(scaled, batch_first=True).unsqueeze(1))[0]

    return features


@torch.no_grad()
def differences(wavs: list[Tensor], config: AudioConfig) -> tuple[float, float]:
    """The largest difference in float64; the share of values that differ by 1e-4 at most in float32."""
    theirs, ours = s3prl_features(config), Features(config)
    found = []
    for dtype in (torch.float32, torch.float64):
        cast = [wav.to(dtype) for wav in wavs]
        tokens, _ = ours.to(dtype)(cast)
        frames = tokens.reshape(len(wavs), -1, config.input_dim // config.stack)
        frames = frames[:, : -(-len(wavs[0]) // config.hop)]
        found.append((frames - theirs(cast)[:, : frames.shape[1]]).abs())
    return float(found[1].max()), float((found[0] <= 1e-4).double().mean())


@torch.no_grad()
def times(wavs: list[Tensor], config: AudioConfig, repeats: int) -> Tensor:
    """Median seconds for the crops, measured in turn after one of each that does not count.

    Returns: (2, 2): S3PRL's and ours, by the clock and of the processor. On a machine that others use too the latter,
    with one thread, is the steadier measure.
    """
    ways = (s3prl_features(config), Features(config))
    taken = torch.zeros(repeats + 1, 2, 2, dtype=torch.float64)
    for record in taken:
        for way, seconds in zip(ways, record, strict=True):
            begin = time.perf_counter(), time.process_time()
            way(wavs)
            seconds[:] = torch.tensor([time.perf_counter() - begin[0], time.process_time() - begin[1]])
    return taken[1:].quantile(0.5, dim=0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m saat.analysis.features_speed", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="audio; noise where none is given")
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(argv)
    wavs = waveforms(options.crops, options.seconds, options.folder)
    print(f"{len(wavs)} crops of {options.seconds} s; medians of {options.repeats}, taken in turn")
    for name, config in (("paper", AudioConfig()), ("S3PRL's Audio ALBERT", AudioConfig(delta=0, stack=1))):
        largest, share = differences(wavs, config)
        print(f"{name}: largest difference {largest:.1e} in float64; {share:.4%} within 1e-4 in float32")
        for threads in options.threads:
            torch.set_num_threads(threads)
            theirs, ours = times(wavs, config, options.repeats)
            clock, processor = (theirs / ours).tolist()
            print(
                f"  {threads} threads: S3PRL {theirs[0]:.3f} s, ours {ours[0]:.3f} s, ratio {clock:.1f} "
                f"(of processor time {processor:.1f})"
            )


if __name__ == "__main__":
    main()
