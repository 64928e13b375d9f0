"""Slips in a probe's config: each is named at once, not at the first checkpoint."""

import pytest

from saat.errors import SaatError

STEPS = ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step", "max_keep")
RUNNER = {**dict.fromkeys(STEPS, 4), "gradient_clipping": 1.0, "eval_dataloaders": ["dev"]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"datarc": {"corpsu": "x"}}, "unknown key 'datarc.corpsu': did you mean 'corpus'"),
        ({"datarc": {"train_batch_size": 0}}, "train_batch_size must be at least 1, not 0"),
        ({"datarc": {"num_workers": "many"}}, "downstream_expert: datarc.num_workers: .*many"),
        ({"modelrc": {"hiden_size": 3}}, "unknown key 'modelrc.hiden_size': did you mean 'hidden_size'"),
        ({"runer": {"total_steps": 1}}, "unknown section 'runer': did you mean 'runner'"),
        ({"runner": {"totl_steps": 1}}, "runner: unknown key 'totl_steps': did you mean 'total_steps'"),
        ({"runner": {"total_steps": 1}}, "runner: gradient_clipping, .*save_step.* must be set"),
        (
            {"runner": {**RUNNER, "save_step": 9, "eval_step": 9}, "mode": "train"},
            "nothing would be saved",
        ),
        ({"runner": {**RUNNER, "log_step": 0}}, "runner: log_step must be at least 1, not 0"),
        ({"optimizer": {"name": "Adan"}}, "S3PRL has no optimizer 'Adan': did you mean 'Adam'"),
        ({"optimizer": {"name": "Adam", "lr": "1e-3"}}, "optimizer.lr must be a number, not '1e-3'; in YAML"),
    ],
)
def test_slips_in_the_config_are_named(make_corpus, make_expert, change, message):
    datarc = {**make_corpus(speakers=2).datarc(), **change.pop("datarc", {})}
    with pytest.raises(SaatError, match=message):
        make_expert("speaker_frame", datarc, **change)


def test_splits_that_will_be_needed_are_checked_at_once(make_corpus, make_expert):
    datarc = make_corpus(speakers=3, utterances=2).datarc()  # no speaker has a third one, for dev
    with pytest.raises(SaatError, match="the dev split has no utterances"):
        make_expert("speaker_frame", datarc, runner=RUNNER)
    with pytest.raises(SaatError, match="unknown split 'devv': did you mean 'dev'"):
        make_expert("speaker_frame", datarc, runner={**RUNNER, "eval_dataloaders": ["devv"]})
    with pytest.raises(SaatError, match="unknown split 'test-other': did you mean 'test'"):
        make_expert("speaker_frame", datarc, mode="evaluate", evaluate_split="test-other")
    make_expert("speaker_frame", datarc, mode="evaluate", evaluate_split="test")
