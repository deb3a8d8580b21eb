"""`like` sets what a paper sets, and nothing that was given."""

import pytest

from schoolhouse.config import Source, build, dump, load
from schoolhouse.family import FAMILY, Config
from schoolhouse.types import SchoolError


def config(**given: object) -> Config:
    return build(Config, Source({"model": "m", **given}, {}))


@pytest.mark.parametrize("name", FAMILY)
def test_every_relative_is_a_config_with_what_it_sets(name: str):
    made = config(like=name)
    assert {key: getattr(made, key) for key in FAMILY[name]} == dict(FAMILY[name])


PUBLISHED = {
    # baseline, scale, aggregate, level, loss, kl, kl_in_reward, clip_low, clip_high
    "grpo": ("mean", "group_std", "sequence_mean", "token", "clip", 0.04, 0.0, 0.2, 0.2),
    "dr_grpo": ("mean", "none", "constant", "token", "clip", 0.0, 0.0, 0.2, 0.2),
    "dapo": ("mean", "group_std", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.28),
    "rloo": ("leave_one_out", "none", "sequence_sum", "token", "clip", 0.0, 0.03, 0.2, 0.28),
    "reinforce_pp": ("batch_mean", "batch_std", "sequence_mean", "token", "clip", 0.0, 0.001, 0.2, 0.2),
    "gspo": ("mean", "group_std", "sequence_mean", "sequence", "clip", 0.0, 0.0, 3e-4, 4e-4),
    "cispo": ("mean", "group_std", "token_mean", "token", "cispo", 0.0, 0.0, 0.2, 4.0),
    "lite_ppo": ("mean", "batch_std", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.2),
    "reinforce": ("none", "none", "sequence_sum", "token", "clip", 0.0, 0.0, 0.2, 0.28),
    "ours": ("mean", "none", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.28),
}


@pytest.mark.parametrize("name", FAMILY)
def test_every_relative_is_what_its_paper_says(name: str):
    c = config(like=name)
    found = (c.baseline, c.scale, c.aggregate, c.level, c.loss, c.kl, c.kl_in_reward, c.clip_low, c.clip_high)
    assert found == PUBLISHED[name]
    assert (c.dynamic_sampling, c.mask_truncated) == ((3, True) if name == "dapo" else (0, False))


def test_what_is_given_wins():
    assert config(like="dapo", clip_high=0.3).clip_high == 0.3


def test_a_config_that_was_written_out_reads_back_the_same(tmp_path):
    made = config(like="rloo", kl_in_reward=0.0)
    (tmp_path / "config.yaml").write_text(dump(made))
    assert load(Config, tmp_path / "config.yaml") == made


def test_another_relative_over_a_written_out_config_changes_more_than_its_name_or_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(dump(config(like="dapo")))
    with pytest.raises(SchoolError) as refused:
        load(Config, tmp_path / "config.yaml", ["--like", "dr_grpo"])
    said = str(refused.value).splitlines()
    assert [line.split("`")[1] for line in said] == [
        "scale",
        "aggregate",
        "clip_high",
        "dynamic_sampling",
        "mask_truncated",
    ]
    assert "`clip_high` is 0.28 here, but 0.2 in `--like dr_grpo`: say which with --clip_high" in said[2]
    words = ["--like", "dr_grpo", "--scale", "none", "--aggregate", "constant", "--clip_high", "0.2"]
    made = load(Config, tmp_path / "config.yaml", [*words, "--dynamic_sampling", "0", "--mask_truncated", "false"])
    assert made == config(like="dr_grpo")


def test_the_relative_that_a_file_names_may_be_named_again(tmp_path):
    (tmp_path / "config.yaml").write_text("model: m\nlike: dapo\nclip_high: 0.3\n")
    assert load(Config, tmp_path / "config.yaml", ["--like", "dapo"]).clip_high == 0.3


def test_another_relative_over_a_file_that_says_nothing_of_it_is_that_relative(tmp_path):
    (tmp_path / "config.yaml").write_text("model: m\nsteps: 3\n")
    assert load(Config, tmp_path / "config.yaml", ["--like", "dapo"]) == config(like="dapo", steps=3)


def test_an_unknown_relative_is_refused_with_the_nearest():
    with pytest.raises(SchoolError, match="did you mean `dapo`"):
        config(like="dappo")


@pytest.mark.parametrize("like", [None, 3, ["dapo"], {"dapo": 1}])
def test_what_is_no_name_is_refused(like: object):
    with pytest.raises(SchoolError, match="there is no relative"):
        config(like=like)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"baseline": "batch_mean", "scale": "group_std"}, "batch_std"),
        ({"loss": "cispo", "level": "sequence", "aggregate": "sequence_mean"}, "set level to `token`"),
        ({"overlong": 64, "length": 64}, "less than length"),
        ({"baseline": "none", "scale": "batch_std"}, "needs a baseline"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], reason: str):
    with pytest.raises(SchoolError, match=reason):
        config(**given)
