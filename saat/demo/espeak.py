"""eSpeak NG through ctypes: text in, samples and the exact start of every phoneme out.

The shared library and its voices come with the package `espeakng-loader`. The library keeps everything in
global variables (the voice, the flutter of the pitch, the phase of the last wave), so what it says depends on
all that it said before. Each `Espeak` therefore loads a copy of the library of its own: the same calls on a
new `Espeak` give the same samples, whatever else this process has done. One is enough for a process.
"""

import ctypes
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saat.errors import SaatError, did_you_mean

# The constants and structures below are those of espeak-ng/speak_lib.h, version 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_DONT_EXIT = 0x8000  # else a missing voice folder ends the process
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_void_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds since the start of the text
        ("sample", ctypes.c_int),  # samples since the start of the text, not of this callback
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Samples = ctypes.POINTER(ctypes.c_short)
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, _Samples, ctypes.c_int, ctypes.POINTER(_Event))


# What eSpeak's American English calls its phonemes, behind the ARPAbet name that forced alignments of
# LibriSpeech use. Lengths, reduced vowels and linking sounds go with the phoneme they are a variant of; an
# r-coloured vowel goes with its vowel, for eSpeak follows it with an r of its own.
_NAMES = """
    AA 0 A: A@ A#,  AE a aa,  AH V @ @2 @5 a#,  AO O O: O2 O@ o@,  AW aU aU@,  AY aI aI@ aI3,  B b,  CH tS,
    D d d#,  DH D,  EH E e@,  ER 3 3:,  EY eI,  F f,  G g,  HH h,  IH I I2 I# I2# i@ i@3,  IY i i:,  JH dZ,
    K k x,  L l l/ l- @L,  M m m-,  N n n-,  NG N,  OW oU,  OY OI,  P p,  R r r- r/,  S s,  SH S,
    T t t# t2 ?,  TH T,  UH U U@,  UW u u:,  V v,  W w,  Y j ;,  Z z z/,  ZH Z
"""
ARPABET = {espeak: arpabet for arpabet, *names in map(str.split, _NAMES.split(",")) for espeak in names}


class DemoError(SaatError, RuntimeError):
    """The demo's corpus cannot be made; the message says what, where, and what to do."""


class Speech(NamedTuple):
    """One spoken text.

    samples: (N,) int16. sample_rate: Hz. phonemes: (start in samples, eSpeak's name with its stress mark), in
    the order of their starts; a name that begins with `_` is a pause.
    """

    samples: np.ndarray
    sample_rate: int
    phonemes: list[tuple[int, str]]


def arpabet(name: str) -> str:
    """The ARPAbet name, without stress, of one of eSpeak's American English phonemes; "SIL" for its pauses.

    Raises DemoError for a phoneme that the table lacks.
    """
    plain = name.lstrip("',%=")
    if plain.startswith("_"):
        return "SIL"
    if plain not in ARPABET:
        raise DemoError(
            f"eSpeak NG spoke a phoneme {name!r} that saat/demo/espeak.py does not know: is its voice en-us, "
            'and its version the one that pip install "espeakng-loader==0.2.4" brings?'
        )
    return ARPABET[plain]


class Espeak:
    """A loaded eSpeak NG.

    Attributes: `version`, the library's own ("1.52.0"); `sample_rate` in Hz.
    Raises DemoError (a RuntimeError) where the package is missing or the library does not start.

    Starting it sets this process's LC_CTYPE to C.UTF-8 where there is one: eSpeak NG does that by itself.
    """

    def __init__(self) -> None:
        self._library, self._data = _load()
        self._chunks: list[np.ndarray] = []
        self._phonemes: list[tuple[int, str]] = []
        self._error: Exception | None = None
        # Python delivers Ctrl-C to its main thread, in the midst of a callback too, and there ctypes drops it
        # together with a piece of the speech. So a thread of its own speaks.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="espeak")
        options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT
        self.sample_rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(self._data).encode(), options
        )
        if self.sample_rate <= 0:
            raise DemoError(
                f"eSpeak NG did not start with the voices in {self._data}: "
                'reinstall them with pip install --force-reinstall "espeakng-loader>=0.2.4"'
            )
        self.version = self._library.espeak_Info(None).decode()
        self._library.espeak_ng_SetRandSeed(1)  # breathy voices draw noise; by default the clock seeds it
        self._callback = _Callback(self._receive)  # kept here: C holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def voices(self, language: str = "en-us") -> list[str]:
        """The names that `speak` takes for one language: plain, and with each variant ("en-us+f1")."""
        variants = sorted(path.name for path in (self._data / "voices" / "!v").iterdir())
        return [language] + [f"{language}+{variant}" for variant in variants]

    def speak(self, text: str, voice: str = "en-us", rate: int = 175, pitch: int = 50) -> Speech:
        """Speak `text`, at `rate` words a minute (80 to 350) and `pitch` (0 to 99, 50 is the voice's own).

        Raises DemoError for an unknown voice, ValueError for a rate or pitch out of range.
        """
        # Beyond, eSpeak squeezes the finished wave, and the phonemes' starts no longer hold.
        if not 80 <= rate <= 350:
            raise ValueError(f"rate is {rate} words a minute; eSpeak's phoneme times hold from 80 to 350")
        if not 0 <= pitch <= 99:
            raise ValueError(f"pitch is {pitch}; eSpeak knows 0 to 99")
        known = self.voices(voice.split("+")[0])
        if voice not in known:  # eSpeak would take an unknown variant without a word, and speak plainly
            raise DemoError(f"eSpeak NG {self.version} has no voice {voice!r}: {did_you_mean(voice, known)}")
        return self._thread.submit(self._speak, text, voice, rate, pitch).result()

    def _speak(self, text: str, voice: str, rate: int, pitch: int) -> Speech:
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DemoError(f"eSpeak NG {self.version} has no voice {voice!r}; American English is 'en-us'")
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        # At the usual 100 some voices reach full scale, and eSpeak turns itself down in the middle of a wave.
        self._library.espeak_SetParameter(_VOLUME, 60, 0)

        self._chunks, self._phonemes, self._error = [], [], None
        data = text.encode()
        size = len(data) + 1  # its closing zero too
        status = self._library.espeak_Synth(data, size, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        if self._error is not None:
            raise self._error
        if status != 0:
            raise DemoError(f"eSpeak NG {self.version} failed (status {status}) at the text {text!r}")
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return Speech(samples, self.sample_rate, self._phonemes)

    def _receive(self, samples, count: int, events) -> int:
        """Called by eSpeak for every 60 ms of speech; returning 1 stops it."""
        try:
            if samples and count > 0:
                self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            index = 0
            while events[index].type != _EVENT_LIST_TERMINATED:
                if events[index].type == _EVENT_PHONEME:
                    self._phonemes.append((events[index].sample, events[index].id.string.decode()))
                index += 1
        except Exception as error:  # ctypes would print it and go on
            self._error = error
            return 1
        return 0


def _load() -> tuple[ctypes.CDLL, Path]:
    """A fresh copy of the shared library, its functions declared, and the folder of its voices."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise DemoError('espeakng-loader is not installed: pip install "s3prl-saat[demo]"') from error
    source = Path(espeakng_loader.get_library_path())
    try:
        # A library of another path is another library to the loader, with variables of its own. Once it's
        # loaded the file may go (on Windows it stays, for a library in use cannot be deleted).
        with tempfile.TemporaryDirectory(prefix="saat-espeak-", ignore_cleanup_errors=True) as folder:
            library = ctypes.CDLL(shutil.copy(source, folder))
    except OSError as error:
        raise DemoError(
            f"eSpeak NG's library {source} cannot be copied to {tempfile.gettempdir()} and loaded from there "
            f"({error}): point TMPDIR at a folder on a disk with free space that is not mounted noexec"
        ) from error

    c_int, c_uint, c_size_t = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
    c_char_p, c_void_p = ctypes.c_char_p, ctypes.c_void_p
    signatures = {
        "espeak_Initialize": (c_int, [c_int, c_int, c_char_p, c_int]),
        "espeak_Info": (c_char_p, [c_void_p]),
        "espeak_SetSynthCallback": (None, [_Callback]),
        "espeak_SetVoiceByName": (c_int, [c_char_p]),
        "espeak_SetParameter": (c_int, [c_int, c_int, c_int]),
        "espeak_Synth": (c_int, [c_char_p, c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p]),
        "espeak_ng_SetRandSeed": (c_int, [ctypes.c_long]),
    }
    try:
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise DemoError(
            f'{source} is older than eSpeak NG 1.52 ({error}): pip install -U "s3prl-saat[demo]"'
        ) from error
    return library, Path(espeakng_loader.get_data_path())
