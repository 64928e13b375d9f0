"""A checkpoint as ONNX, for programs without Python: waveforms in, hidden states out, any batch and any length."""

import importlib.util
import json
import tempfile
import warnings
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from saat.errors import SaatError
from saat.files import free
from saat.sharing import store
from saat.upstream import checkpoint
from saat.upstream.expert import UpstreamExpert

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-4
LENGTHS = ([16000], [200, 1], [12345, 9600, 700], [4800, 24000])  # samples; on these the file is compared


def export_onnx(source: str | Path, out: str | Path, force: bool = False) -> Path:
    """Write a checkpoint as ONNX, opset 18, once onnxruntime gives the upstream's hidden states from it, within 1e-4.

    Inputs `wavs` (B, S) float32, 16 kHz, and `samples` (B,) int64, each from 1 to S; outputs `hidden_states`
    (layers + 1, B, T, H), zero beyond each utterance's end, and `tokens` (B,) int64. The metadata has the model's
    config and step as JSON, under `saat`. Longer than a variant's `max_length`: an error of the runtime, since a graph
    does not cut an utterance into windows.

    Args:
        source: a `states-N.ckpt`, or a published checkpoint (its name or folder).
        out: the file to write.
        force: overwrite it.

    Errors: SaatError where a package is missing, for a variant that another runtime would not compute alike (LSH), a
    model beyond ONNX's 2 GB, or when `out` is there or cannot be written.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SaatError(f"--format onnx needs {', '.join(missing)}: pip install 's3prl-saat[onnx]'")
    path = Path(source).expanduser()
    path, out = path if path.is_file() else store.source_folder(str(source)), free(out, force)
    states = checkpoint.load(path)
    config = checkpoint.check_model(states, str(path))
    upstream = UpstreamExpert(config.upstream, ckpt=str(path)).eval()
    if (why := upstream.encoder.layers()[0].attention.not_elsewhere) is not None:
        raise SaatError(f"{config.upstream} cannot be exported: {why}, so its hidden states would be others in ONNX")
    program = _program(upstream)
    about = {"Upstream_Config": config.to_dict(), "Step": states.get("Step", 0)}
    program.model.metadata_props[checkpoint.METADATA] = json.dumps(about)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            part = Path(folder) / out.name
            program.save(part)
            if list(Path(folder).iterdir()) != [part]:
                raise SaatError(f"{path} is too large: an ONNX file holds 2 GB")
            compare(part, upstream)
            part.replace(out)
    except OSError as error:
        raise SaatError(f"cannot write {out}: {error}") from error
    return out


def _program(upstream: UpstreamExpert) -> torch.onnx.ONNXProgram:
    from saat.sharing.onnx_graph import Graph

    graph = Graph(upstream).eval()
    example = (torch.ones(3, 9000), torch.tensor([9000, 5000, 700]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not optimised: to onnxscript's rules the 1e-10 that is added before the logarithm is nothing, and goes.
        program = torch.onnx.export(
            graph, example, dynamo=True, verbose=False, optimize=False, opset_version=OPSET,
            input_names=["wavs", "samples"], output_names=["hidden_states", "tokens"],
            dynamic_shapes=({0: "batch", 1: "length"}, {0: "batch"}),
        )  # fmt: skip
    # A runtime's error message has the name of the node that failed: of the two lookups that refuse, a sentence.
    sentences = {
        "refusal": "samples_must_be_from_1_to_the_length_of_wavs",
        "positions": f"at_most_{graph.max_length}_tokens",
    }
    for node in program.model.graph:
        if node.op_type == "Gather" and (table := node.inputs[0].name) in sentences:
            node.name = sentences[table]
    return program


@torch.no_grad()
def compare(path: Path, upstream: UpstreamExpert) -> float:
    """The largest difference between the file's hidden states, by onnxruntime, and the upstream's, on noise.

    Errors: SaatError where it is more than 1e-4.
    """
    import onnxruntime

    limit = upstream.encoder.layers()[0].attention.max_length
    most = limit * upstream.model_config.audio.stride if limit else max(map(max, LENGTHS))
    generator = torch.Generator().manual_seed(0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings about what it does not fold
    session, worst = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), 0.0
    for lengths in LENGTHS:
        wavs = [0.1 * torch.randn(min(n, most), generator=generator) for n in lengths]
        for wav in wavs:
            wav[len(wav) // 3 : len(wav) // 2] = 0  # silence: what is added before the logarithm counts
        samples = torch.tensor([len(wav) for wav in wavs])
        given = {"wavs": pad_sequence(wavs, batch_first=True).numpy(), "samples": samples.numpy()}
        theirs = torch.from_numpy(session.run(["hidden_states"], given)[0])
        ours = torch.stack(upstream(wavs)["hidden_states"])
        worst = max(worst, float((ours - theirs).abs().max()))
    if not worst <= TOLERANCE:
        raise SaatError(f"the ONNX model differs by {worst:.1e} from ours: not written; please report it")
    return worst
