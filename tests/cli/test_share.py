"""`fastgan share`: a folder that loads, a card that is true and that the hub can read, and an upload to a stand-in."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import fastgan
from fastgan import sharing
from fastgan.cli import share
from fastgan.cli.evaluate import main as evaluate
from fastgan.cli.share import main
from fastgan.data import hub as networks
from fastgan.files import file_digest
from fastgan.runs.checkpoint import FILE_NAME, load_generator, read_header
from tests.support import hub, official
from tests.support.commands import error_of
from tests.support.tiny_run import train, untrained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cache")]

FILES = {FILE_NAME, "config.json", "README.md", "samples.png"}
NAME = "someone/tiny-images"


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A training of two EMAs, and the metrics of the second."""
    out = tmp_path_factory.mktemp("run") / "secret-place"
    train(folder, out, "--images", "4", "--ema-halflife", "10", "2.5")
    argv = ["--checkpoint", str(out), "--metrics", "eqt", "--samples", "4", "--ema", "2.5", "--device", "cpu"]
    assert evaluate([*argv, "--json", str(out / "numbers.json")]) == 0
    report = json.loads((out / "numbers.json").read_text())
    report |= {"missing": {"kid": f"{folder} is gone"}, "data": str(folder), "real": str(folder), "real_images": 20}
    (out / "numbers.json").write_text(json.dumps(report))
    return out


def front_matter(text: str) -> dict:
    """The card's metadata, as the hub reads it."""
    cards = pytest.importorskip("huggingface_hub")
    return cards.ModelCard(text).data.to_dict()


def test_a_run_becomes_a_folder_that_loads(run, tmp_path, capsys):
    out = tmp_path / "tiny"
    argv = ["--license", "CC-BY-4.0", "--about", "two shades of noise, CC0", "--metrics", str(run / "numbers.json")]
    assert main([str(run), "--out", str(out), "--ema", "2.5", *argv]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert {path.name for path in out.iterdir()} == FILES | {"metrics.json"}
    assert not list(tmp_path.glob("*.unfinished"))
    expected, _ = load_generator(run, ema=2.5)
    shared = fastgan.load(out, device="cpu").generator
    assert all(torch.equal(a, b) for a, b in zip(shared.parameters(), expected.parameters(), strict=True))
    with safe_open(out / FILE_NAME, framework="pt") as file:
        assert all(name.startswith("ema.") for name in file.keys())  # noqa: SIM118
    with Image.open(out / "samples.png") as picture:
        assert picture.width > picture.height > 2 * 48, "a row of images for each of two classes"

    card = (out / "README.md").read_text()
    assert front_matter(card) == {
        "library_name": "fastgan",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["gan", "image-generation", "pytorch", "stylegan2"],
        "license": "cc-by-4.0",
    }
    report = json.loads((out / "metrics.json").read_text())
    for part in (
        "# tiny\n", "A generator of 8x8 images in grey, 2 classes: stylegan2, ", "![Samples](samples.png)",
        "--checkpoint . ", "Classes: `dark`, `light`.", "- Data: two shades of noise, CC0.",
        "`fastgan train --data images ", "4 images.", "half-life of 2.5 thousand images",
        "compared with 20 real images: images\n", "EQ-T, dB",
        f"{report['samples']['eqt']:.2f}", "Of the network: CC-BY-4.0.", file_digest(out / FILE_NAME),
    ):  # fmt: skip
        assert part in card, part


def test_a_shared_folder_says_nothing_of_places_and_can_be_shared_again(run, folder, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    argv = ["--ema", "2.5", "--metrics", str(run / "numbers.json")]
    assert main([str(run), "--out", str(one), *argv]) == 0
    assert main([str(one), "--out", str(two), "--license", "my own terms"]) == 0
    places = (b"secret-place", str(run.parent).encode(), str(folder).encode())
    for path in one.iterdir():
        assert not [place for place in places if place in path.read_bytes()], path
    assert (one / FILE_NAME).read_bytes() == (two / FILE_NAME).read_bytes()
    assert (one / "metrics.json").read_bytes() == (two / "metrics.json").read_bytes()
    assert "license" not in front_matter((one / "README.md").read_text())
    assert "None is given: ask the author" in (one / "README.md").read_text()
    found = front_matter((two / "README.md").read_text())
    assert (found["license"], found["license_name"]) == ("other", "my-own-terms")


def test_metrics_of_another_checkpoint_are_not_taken(run, tmp_path, capsys):
    other, report = untrained(tmp_path / "other", "dcgan"), str(run / "numbers.json")
    (other / "metrics.json").write_text((run / "numbers.json").read_text())
    argv = [str(other), "--out", str(tmp_path / "out")]
    assert "numbers.json: is of another checkpoint than" in error_of(main, [*argv, "--metrics", report], capsys)
    line = error_of(main, [str(run), "--out", str(tmp_path / "out"), "--metrics", report], capsys)
    assert line.endswith("numbers.json: is of the EMA of half-life 2.5, not 10; see --ema")
    for content in ("", "[]", '{"samples": {}}', "{}", "[" * 100_000, "\xff"):
        (tmp_path / "bad.json").write_text(content, encoding="latin-1")
        line = error_of(main, [*argv, "--metrics", str(tmp_path / "bad.json")], capsys)
        assert line.endswith("bad.json: is not what python -m fastgan.evaluate --json writes")
    assert not list(tmp_path.glob("out*"))
    assert main(argv) == 0
    says = capsys.readouterr().out
    assert "metrics.json is of another checkpoint: left out" in says and "the card has no metrics: " in says
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured." in card and "Matplotlib" in card and "Classes" not in card


def test_the_folder_is_complete_or_not_there(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()  # an empty one is taken
    (tmp_path / "out.share.unfinished").mkdir()  # of a process that was killed
    (tmp_path / "out.share.unfinished" / "old").touch()
    with monkeypatch.context() as patch:
        patch.setattr(share.evaluate, "table", lambda report: 1 / 0)
        patch.setattr(sharing, "card", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([str(run), "--out", str(out)])
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list(out.iterdir())
    assert main([str(run), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    before = {path: path.read_bytes() for path in out.iterdir()}
    line = error_of(main, [str(run), "--out", str(out)], capsys)
    assert line == f"--out {out}: is there already; choose another folder, or remove it"
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_what_cannot_be_shared_is_an_error_of_one_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = official.Sizes(img_resolution=8, img_channels=1, channel_base=64, channel_max=8, z_dim=6)
    path = official.write(tmp_path / "network.pkl", official.snapshot(sizes))
    (tmp_path / "file").touch()
    new = ["--out", "new"]
    for argv, says in (
        ([str(path), *new], "is of another program, and does not say how it was trained; "),
        ([str(run), *new, "--license", " "], "--license  : must be one line of text"),
        ([str(run), *new, "--about", "a\nb"], "--about a\\nb: must be one line of text"),
        ([str(run), *new, "--private"], "--private: is for a repository that --push creates"),
        ([str(run), *new, "--push", "me"], "--push me: must be USER/NAME"),
        ([str(run), *new, "--ema", "3"], "--ema 3: "),
        ([str(run), *new, "--metrics", "nowhere.json"], "--metrics nowhere.json: No such file"),
        ([str(run), "--out", "file"], "--out file: is there already"),
        ([str(run), "--out", "file/new"], "cannot write file/new: "),
        ([str(run), "--out", "."], "--out .: is there already"),
        (["nowhere", *new], "nowhere: there is no such checkpoint"),
    ):
        assert says in error_of(main, argv, capsys), argv
    assert {each.name for each in tmp_path.iterdir()} == {"network.pkl", "file"}


def test_a_folder_is_uploaded_and_loaded_by_its_name(run, tmp_path, monkeypatch, capsys):
    with hub.serve(monkeypatch, tmp_path) as server:
        argv = [str(run), "--push", NAME, "--license", "mit", "--private"]
        line = error_of(main, [*argv, "--out", str(tmp_path / "one")], capsys)
        assert line == f"--push {NAME}: nobody is logged in; run hf auth login, or set HF_TOKEN"
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        assert main([*argv, "--out", str(tmp_path / "one")]) == 0
        says = capsys.readouterr().out.splitlines()
        assert says[-2:] == [f"{server.url}/{NAME}", f"fastgan generate --checkpoint hf://{NAME}"]
        files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
        assert server.repositories[NAME][-1] == files and server.private == {NAME}
        assert f'fastgan.load("hf://{NAME}")' in files["README.md"].decode()
        shared = fastgan.load(f"hf://{NAME}", device="cpu").generator
        expected, _ = load_generator(run)
        assert all(torch.equal(a, b) for a, b in zip(shared.parameters(), expected.parameters(), strict=True))

        assert main([str(run), "--push", NAME, "--ema", "2.5", "--out", str(tmp_path / "two")]) == 0
        assert len(server.repositories[NAME]) == 3, "a commit for each upload"
        digests = [read_header(f"hf://{NAME}{at}").digest for at in (f"@{hub.revision_of(files)}", "")]
        assert digests == [read_header(tmp_path / name).digest for name in ("one", "two")] and len({*digests}) == 2

        server.repositories[NAME][-1]["metrics.json"] = b"of an earlier network"
        assert main([str(run), "--push", NAME, "--out", str(tmp_path / "without metrics")]) == 0
        assert "metrics.json" not in server.repositories[NAME][-1]

        server.private.clear()
        line = error_of(main, [*argv, "--out", str(tmp_path / "public")], capsys)
        assert f"--private: {NAME} is there already, and public" in line and len(server.repositories[NAME]) == 4

        monkeypatch.setenv("HF_TOKEN", "expired")
        line = error_of(main, [str(run), "--push", NAME, "--out", str(tmp_path / "three")], capsys)
        assert re.match(rf"--push {NAME}: .*401.*; the folder is written, hf upload {NAME} \S+/three sends it", line)
        assert (tmp_path / "three" / FILE_NAME).exists()


def test_uploading_needs_the_package(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    line = error_of(main, [str(run), "--push", NAME, "--out", str(tmp_path / "out")], capsys)
    assert line.startswith(f'--push {NAME}: needs the extra "huggingface"') and not list(tmp_path.iterdir())


def test_a_card_names_the_networks_that_a_training_began_with(run):
    header = read_header(run)
    training = sharing.dataclasses.replace(header.config.training, init_from="/home/me/ffhq.pkl?token=1")
    header = sharing.dataclasses.replace(header, config=sharing.dataclasses.replace(header.config, training=training))
    files = {FILE_NAME: "the generator"}
    text = sharing.card("x", header, ema=10, about=None, license=None, report=None, repository=None, files=files)
    assert "began with the networks of `ffhq.pkl?token=1`, whose licence may bind this one as well." in text
    assert "--init-from 'ffhq.pkl?token=1'" in text and "/home/me" not in text
    assert sharing.name_of("https://host/a/b.pkl?token=1#x") == "b.pkl"
    assert networks.is_repository(NAME) and not networks.is_repository("a/b/c")
