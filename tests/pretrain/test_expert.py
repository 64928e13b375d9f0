"""The loss, the optimizer, and S3PRL's interface."""

import math
from collections import defaultdict

import pytest
import torch
import yaml

from saat.errors import SaatError
from saat.pretrain.data import Batch
from saat.pretrain.loop import Trainer
from saat.pretrain.masking import mask_tokens
from saat.pretrain.model import SpecHead, frames, target_dim
from saat.pretrain.optimizer import learning_rate, make_optimizer, set_options
from saat.pretrain.pretrain_expert import UpstreamPretrainExpert
from saat.pretrain.recipe import OptimizerConfig, load_recipe
from saat.upstream.config import model_config

from .conftest import TINY


def tiny_model(upstream="saat_ours", dropout=0.0, **task):
    overrides = {"transformer": {"hidden_dropout_prob": dropout}, "task": task}
    return model_config(upstream, (TINY["model"], "test"), (overrides, "test"))


def make(corpus, config=None, seed=1337, accumulate=1, **datarc):
    values = {"corpus": [str(corpus)], "train_batch_size": 4, "num_workers": 0, **datarc}
    return UpstreamPretrainExpert(values, config or tiny_model(), "cpu", seed=seed, accumulate=accumulate)


def test_loss_is_the_mean_error_over_masked_elements_whatever_the_padding(corpus):
    expert = make(corpus, train_batch_size=6).double().eval()
    batch = next(iter(expert.get_train_dataloader(1)))
    loss, _ = expert(batch, global_step=1)
    errors, elements = 0.0, 0
    for i, wav in enumerate(batch.waveforms("cpu")):
        features, lengths = expert.features([wav])
        masked, chosen = mask_tokens(features, lengths, batch.numbers[i : i + 1], expert.seed, expert.config.task)
        predicted = expert.model.SpecHead(expert.model.Transformer(masked, lengths)[-1])
        errors += float((predicted - features)[chosen].abs().sum().detach())
        elements += int(chosen.sum()) * features.shape[-1]
    assert elements == expert.masked_elements(batch)
    assert math.isclose(float(loss), errors / elements, rel_tol=1e-9)
    wider = Batch(batch.numbers, torch.nn.functional.pad(batch.audio, (0, 5000)), batch.samples, [])
    assert math.isclose(float(expert(wider, global_step=1)[0]), float(loss), rel_tol=1e-12)


@pytest.mark.parametrize("upstream", ["saat_ours", "saat_qk", "saat_xbox"])
def test_accumulation_changes_nothing(corpus, tmp_path, upstream):
    found = []
    for size, parts in ((8, 1), (4, 2), (2, 4)):
        expert = make(corpus, tiny_model(upstream), accumulate=parts, train_batch_size=size).double()
        recipe = load_recipe(
            {"runner": {"gradient_accumulate_steps": parts, "total_steps": 9, "gradient_clipping": 1e9}}, "test"
        )
        trainer = Trainer(expert.train(), recipe, tmp_path, {})
        gradients = []
        expert.on_before_zero_grad = lambda kept=gradients, model=expert.model: kept.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        )
        batches = trainer._batches()
        losses = [trainer._one_step(batches).loss for _ in range(3)]
        found.append((losses, gradients))
    for losses, gradients in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-9)
        for a, b in zip(gradients, found[0][1], strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_linear_target(corpus):
    expert = make(corpus, tiny_model(target="linear"))
    assert target_dim(expert.config) == 201 * 3
    records = {}
    loss, _ = expert(next(iter(expert.get_train_dataloader())), records, 5, 5)
    loss.backward()
    assert records["mask_spec"].shape[:2] == (3, 10) and records["pred_spec"].shape[:2] == (3, 201)


def test_frames_undoes_the_stacking(corpus):
    expert = make(corpus)
    wav = torch.randn(16000)
    tokens = expert.features([wav])[0][0]
    shown = frames(tokens, 3, 10)
    assert shown.shape == (len(tokens) * 3, 10)
    assert torch.equal(shown[4], tokens[1, 20:30])  # 10 mels and 10 deltas a frame


def test_head_and_start(corpus):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = make(corpus, seed=1), make(corpus, seed=1), make(corpus, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    weights = [expert.model.SpecHead.dense.weight for expert in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    head = SpecHead(model_config("saat_qk").transformer, 480)
    assert abs(float(head.output.weight.std()) - 0.02) < 1e-3 and not head.output.bias.any()


# The optimizer


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_no_decay_on_biases_norms_and_R(corpus, name):
    model = make(corpus).model
    optimizer = make_optimizer(model, OptimizerConfig(name=name, weight_decay=0.3))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for key, parameter in model.named_parameters():
        plain = key.endswith(".bias") or "norm" in key or key.endswith(".R")
        assert (id(parameter) in decayed) != plain, key


@pytest.mark.parametrize("upstream", ["saat_ours", "saat_qk"])
def test_a_learning_rate_of_its_own_for_R(corpus, upstream):
    """The first step of Adam moves each weight by the learning rate."""
    moved = {}
    for scale in (1.0, 10.0):
        model = make(corpus, tiny_model(upstream)).model
        config = OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.0, R_lr_scale=scale)
        optimizer = make_optimizer(model, config)
        assert len(optimizer.param_groups) == (3 if scale != 1 and upstream == "saat_ours" else 2)
        set_options(optimizer, config, 2e-3)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved[scale] = {name: float((before[name] - p).abs().mean()) for name, p in model.named_parameters()}
    for name, distance in moved[1.0].items():
        assert distance == pytest.approx(2e-3, rel=1e-2)
        assert moved[10.0][name] == pytest.approx((10 if name.endswith(".R") else 1) * 2e-3, rel=1e-2)
    with pytest.raises(SaatError, match="optimizer.R_lr_scale must be a positive number, not 0"):
        load_recipe({"optimizer": {"R_lr_scale": 0.0}}, "test")


def test_lamb_is_the_paper_version_3():
    """One parameter, three steps, against the formulas (You et al., 2019, without bias correction)."""
    config = OptimizerConfig(lr=0.01, weight_decay=0.1)
    model = torch.nn.Linear(4, 3, bias=False)
    w = model.weight.detach().clone().double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    optimizer = make_optimizer(model, config)
    for step in range(3):
        grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        model.weight.grad = grad.clone()
        set_options(optimizer, config, 0.01 * (step + 1))
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad.double() ** 2
        update = m / (v.sqrt() + 1e-6) + 0.1 * w
        w = w - 0.01 * (step + 1) * w.norm() / update.norm() * update
        assert torch.allclose(model.weight.detach().double(), w, rtol=1e-4, atol=1e-6)


def test_schedule():
    config = OptimizerConfig(lr=1.0, warmup_proportion=0.1)
    rates = [learning_rate(step, 100, config) for step in range(1, 102)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10:100] == pytest.approx([(90 - k) / 90 for k in range(90)])
    assert rates[100] == 0 and min(rates[:100]) > 0
    assert learning_rate(1, 1, config) == 1.0
    cosine = OptimizerConfig(lr=1.0, warmup_proportion=0.1, schedule="cosine")
    falling = [learning_rate(step, 100, cosine) for step in range(1, 102)]
    assert falling[:11] == pytest.approx(rates[:11]) and falling[55] == pytest.approx(0.5) and falling[100] == 0
    assert falling[10:] == pytest.approx([(1 + math.cos(math.pi * k / 90)) / 2 for k in range(91)])
    with pytest.raises(SaatError, match="unknown optimizer.schedule 'cosin'.*cosine"):
        load_recipe({"optimizer": {"schedule": "cosin"}}, "test")


# S3PRL's interface


class Logger:
    def __init__(self):
        self.images = {}

    def add_image(self, name, values, global_step):
        self.images[name] = (values.shape, global_step)


def test_driven_as_by_s3prls_runner(corpus, tmp_path):
    """The calls of s3prl/pretrain/runner.py, whose imports work only inside its own checkout."""
    path = tmp_path / "config_model.yaml"
    path.write_text(yaml.safe_dump({"upstream": "saat_qk", **TINY["model"]}))
    datarc = {"corpus": [str(corpus)], "train_batch_size": 4, "num_workers": 0}
    upstream = UpstreamPretrainExpert(datarc, str(path), "cpu", False).to("cpu")
    for name in ("device", "forward", "load_model", "add_state_to_save", "on_before_zero_grad", "get_train_dataloader"):
        assert hasattr(upstream, name)
    upstream.train()
    dataloader = upstream.get_train_dataloader()
    assert len(dataloader) == len(dataloader.dataset) == 3
    optimizer = torch.optim.AdamW(upstream.model.parameters(), lr=1e-3)
    logger, records = Logger(), defaultdict(list)
    global_step, losses, seen = 0, [], []
    while global_step < 5:
        for data in dataloader:
            global_step += 1
            seen += data.numbers.tolist()
            loss, records = upstream(data, records=records, global_step=global_step, log_step=2)
            (loss / 1).backward()
            losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(upstream.model.parameters(), 5.0)
            optimizer.step()
            upstream.on_before_zero_grad()
            optimizer.zero_grad()
            if global_step % 2 == 0:
                upstream.log_records(records=records, logger=logger, prefix="saat_qk/train-", global_step=global_step)
                records = defaultdict(list)
    assert seen == list(range(4 * 6)) and all(map(math.isfinite, losses))
    assert set(logger.images) == {f"saat_qk/train-{name}" for name in ("mask_spec", "pred_spec", "true_spec")}
    (channels, bands, _), step = logger.images["saat_qk/train-true_spec"]
    assert (channels, bands, step) == (3, 10, 6)

    states = upstream.add_state_to_save({"Optimizer": optimizer.state_dict()})
    again = UpstreamPretrainExpert(datarc, states["Upstream_Config"], "cpu", False)
    again.load_model(states)
    assert torch.equal(again.model.SpecHead.dense.weight, upstream.model.SpecHead.dense.weight)


def test_what_the_expert_refuses(corpus, tmp_path):
    datarc = {"corpus": [str(corpus)]}
    with pytest.raises(SaatError, match="unknown key 'train_batchsize': did you mean 'train_batch_size'"):
        UpstreamPretrainExpert({**datarc, "train_batchsize": 3}, {"upstream": "saat_qk"}, "cpu")
    with pytest.raises(SaatError, match="datarc.train_batch_size must be at least 1"):
        UpstreamPretrainExpert({**datarc, "train_batch_size": 0}, {"upstream": "saat_qk"}, "cpu")
    with pytest.raises(SaatError, match="no corpus: pass --corpus"):
        UpstreamPretrainExpert({}, {"upstream": "saat_qk"}, "cpu")
    with pytest.raises(SaatError, match="no key 'upstream'"):
        UpstreamPretrainExpert(datarc, {}, "cpu")
    with pytest.raises(SaatError, match="saat_mel has nothing to train"):
        UpstreamPretrainExpert(datarc, {"upstream": "saat_mel"}, "cpu")
    with pytest.raises(SaatError, match="multi_gpu"):
        UpstreamPretrainExpert(datarc, {"upstream": "saat_qk"}, "cpu", True)
    other = make(corpus, tiny_model("saat_ours"))
    with pytest.raises(SaatError, match="do not fit the model"):
        make(corpus, tiny_model("saat_qk")).load_model(other.add_state_to_save({}))
