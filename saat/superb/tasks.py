"""The tasks of SUPERB: what data each needs, and how S3PRL names its folder, metric and files."""

from dataclasses import dataclass, field

RATES = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "1e-7")  # SUPERB's search


@dataclass(frozen=True)
class Task:
    """One task of SUPERB, as S3PRL runs it."""

    title: str
    folder: str  # S3PRL's -d
    needs: dict[str, str]  # what the data file must name: the key of S3PRL's config it sets
    about: str  # what these are, for people who have not got them
    metric: str
    higher_is_better: bool
    best: str = "dev-best.ckpt"
    test: str = "test"
    config: str = "config.yaml"
    folds: tuple[dict[str, str], ...] = field(default=({},))  # cross-validation: config values of each part


EXPERT = "downstream_expert"
DATARC = f"{EXPERT}.datarc"
TASKS = {
    "pr": Task(
        "phoneme recognition",
        "ctc",
        {"root": f"{EXPERT}.corpus.path"},
        "LibriSpeech (train-clean-100, dev-clean, test-clean)",
        "per",
        False,
        config="libriphone.yaml",
    ),
    "asr": Task(
        "speech recognition",
        "asr",
        {"root": f"{DATARC}.libri_root", "lengths": f"{DATARC}.bucket_file"},
        "LibriSpeech as for pr, and the folder that S3PRL's preprocess/generate_len_for_bucket.py makes of it",
        "wer",
        False,
        "dev-clean-best.ckpt",
        "test-clean",
    ),
    "ks": Task(
        "keyword spotting",
        "speech_commands",
        {"root": f"{DATARC}.speech_commands_root", "test_root": f"{DATARC}.speech_commands_test_root"},
        "Speech Commands v0.01, and its test set",
        "acc",
        True,
    ),
    "sid": Task(
        "speaker identification",
        "voxceleb1",
        {"root": f"{DATARC}.file_path"},
        "VoxCeleb1 (dev/wav, test/wav)",
        "acc",
        True,
    ),
    "er": Task(
        "emotion recognition",
        "emotion",
        {"root": f"{DATARC}.root"},
        "IEMOCAP (Session1 … Session5)",
        "acc",
        True,
        folds=tuple({f"{DATARC}.test_fold": f"fold{i}"} for i in range(1, 6)),
    ),
    "ic": Task(
        "intent classification",
        "fluent_commands",
        {"root": f"{DATARC}.file_path"},
        "Fluent Speech Commands (wavs, data)",
        "acc",
        True,
    ),
}
