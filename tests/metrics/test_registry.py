"""Metrics by name, and the files that they need."""

import pytest

from fastgan.errors import UserError
from fastgan.metrics import registry


def test_missing_weights_are_named_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=rf"not downloaded automatically: put https://.*6726825d.pth into {tmp_path}, or give"
    ):
        registry.find_weights(registry.INCEPTION, {registry.INCEPTION: None})
    with pytest.raises(UserError, match=rf"put {registry.VGG_URL} into {tmp_path}$"):  # a command without the option
        registry.find_weights(registry.VGG, {})
    with pytest.raises(UserError, match=r"--inception-weights nowhere\.pth: no such file; download https"):
        registry.find_weights(registry.INCEPTION, {registry.INCEPTION: "nowhere.pth"})
    (tmp_path / registry.INCEPTION_FILE).touch()
    assert registry.find_weights(registry.INCEPTION, {}) == tmp_path / registry.INCEPTION_FILE


def test_weights_that_no_metric_needs_are_an_error():
    weights = {registry.INCEPTION: None, registry.VGG: "vgg.pth"}
    registry.require_needed(("kid", "ppl-z-lpips"), weights)
    with pytest.raises(UserError, match=r"^--vgg-weights vgg\.pth: no metric of --metrics needs it; leave it out$"):
        registry.require_needed(("kid", "ppl-z", "fid"), weights)


def test_a_network_that_has_taught_does_not_judge_alone():
    metrics = ("kid", "fid", "pr")
    assert registry.judged(metrics, "own") == metrics
    assert registry.judged(metrics, "projected") == ("kid-lite2", "pr-lite2", "kid", "fid", "pr")
    assert registry.judged(("kid-lite2", "kid"), "projected") == ("kid-lite2", "kid")
    for name, other in registry.JUDGES.items():
        one, two = registry.METRICS[name], registry.METRICS[other]
        assert (one.network, two.network) == (registry.PROJECTED, registry.LITE2)
        assert (one.kind, one.higher) == (two.kind, two.higher)


def test_metrics_are_parsed_by_name():
    assert registry.parse("fid, kid,fid") == ("fid", "kid")
    assert registry.by_network(("kid", "fid", "fd")) == {
        registry.LITE0: ("kid", "fd"),
        registry.INCEPTION: ("fid",),
    }
    values = [value for metric in registry.METRICS.values() for value in metric.values]
    assert len(values) == len(set(values))
    for names, says in (
        ("kid,fit", "--metrics kid,fit: there is no metric fit; choose from kid, fd"),
        (",", "--metrics ,: no metric named; choose"),
    ):
        with pytest.raises(UserError, match=says):
            registry.parse(names)
