"""Animations: every frame of a file, as other programs read it, and files that cannot be written."""

import threading

import numpy as np
import pytest
from PIL import Image, ImageSequence

from fastgan.errors import UserError
from fastgan.runs import animation
from fastgan.runs.animation import require_animation, save_animation


def frames(count, height=8, width=10, channels=3):
    """Frames in which a square moves over a slope, smooth enough for a video."""
    slope = np.linspace(60, 200, height * width).reshape(height, width, 1)
    for number in range(count):
        frame = np.repeat(slope, channels, 2)
        frame[2:6, number % (width - 3) : number % (width - 3) + 4, : min(channels, 3)] = [250, 20, 120][:channels]
        yield frame.round().astype(np.uint8)


def read_gif(path):
    """Frames and their times in milliseconds, by Pillow."""
    picture = Image.open(path)
    assert picture.info["loop"] == 0
    return [(np.asarray(each.convert("RGB")), each.info["duration"]) for each in ImageSequence.Iterator(picture)]


def read_video(path):
    """Frames, and the rate, by FFmpeg."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_has_every_frame(channels, tmp_path):
    """Grey ones exactly, and colours by a palette for each frame."""
    path = tmp_path / "a.gif"
    save_animation(frames(9, channels=channels), path, 25)
    shown = read_gif(path)
    for (frame, duration), expected in zip(shown, frames(9, channels=channels), strict=True):
        large = expected.repeat(32, 0).repeat(32, 1)
        assert np.abs(frame.astype(int) - large).max() <= (0 if channels == 1 else 4) and duration == 40
    assert all(np.array_equal(*pair) for pair in zip(read_video(path)[0], (frame for frame, _ in shown), strict=True))


def test_a_gif_of_many_colours_is_near_to_each_and_keeps_its_background(tmp_path):
    """Within a few levels on average, where 256 colours stand for tens of thousands."""
    y, x = np.mgrid[:300, :300]
    frame = np.stack([x, y, 255 - (x + y) // 2], 2).clip(0, 255).astype(np.uint8)
    frame[:80, :80] = 255
    frame[80:85, :80] = 253
    frame[85:90, :80] = 0
    save_animation([frame, frame[::-1]], tmp_path / "a.gif", 25)
    for (shown, _), expected in zip(read_gif(tmp_path / "a.gif"), [frame, frame[::-1]], strict=True):
        error = np.abs(shown.astype(int) - expected)
        assert 1 < error.mean() < 6 and error.max() < 40
        assert (shown[expected.min(2) == 255] == 255).all() and (shown[expected.max(2) == 0] < 40).all()


def test_equal_frames_of_a_gif_are_one_that_is_shown_longer(tmp_path):
    first, second, third = frames(3)
    save_animation([first, first, second, third, third, third], tmp_path / "a.gif", 50)
    assert [duration for _, duration in read_gif(tmp_path / "a.gif")] == [40, 20, 60]


def test_a_gif_stands_still_as_long_as_its_frames_say(tmp_path):
    """Longer than a frame of the format can."""
    (frame,) = frames(1)
    save_animation([frame] * 700, tmp_path / "a.gif", 1)
    assert [duration for _, duration in read_gif(tmp_path / "a.gif")] == [600_000, 100_000]


def test_a_gif_keeps_its_speed_though_its_times_are_hundredths(tmp_path):
    save_animation(frames(30), tmp_path / "a.gif", 30)
    times = [duration for _, duration in read_gif(tmp_path / "a.gif")]
    assert {*times} == {30, 40} and sum(times) == 1000


def test_a_frame_of_a_gif_has_only_what_changed(tmp_path):
    """A still frame of noise with a small square that moves takes little more than one frame."""
    still = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    moved = [still.copy() for _ in range(8)]
    for number, frame in enumerate(moved):
        frame[8 * number : 8 * number + 8, :8] = number
    save_animation([still], tmp_path / "one.gif", 25)
    save_animation(moved, tmp_path / "all.gif", 25)
    assert (tmp_path / "all.gif").stat().st_size < 1.2 * (tmp_path / "one.gif").stat().st_size
    assert len(read_gif(tmp_path / "all.gif")) == 8


@pytest.mark.parametrize("height, width", [(8, 10), (261, 301)])
def test_an_mp4_has_every_frame_in_its_colours(height, width, tmp_path):
    """Odd sides get one more row or column, as H.264 has even ones only."""
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    save_animation(frames(12, height, width), path, 30, quality=10)
    shown, rate = read_video(path)
    factor = 32 if height == 8 else 1
    assert rate == 30 and shown[0].shape == (factor * height + height % 2, factor * width + width % 2, 3)
    for frame, expected in zip(shown, frames(12, height, width), strict=True):
        error = np.abs(frame[: factor * height : factor, : factor * width : factor].astype(int) - expected)
        assert error.mean() < 4 and np.median(error) <= 2


def test_quality_of_an_mp4(tmp_path):
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3)).astype(np.uint8)
    errors, sizes = [], []
    for quality in (1, 5, 10):
        save_animation(noise, tmp_path / "a.mp4", 25, quality)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
        errors.append(np.abs(np.stack(read_video(tmp_path / "a.mp4")[0]).astype(int) - noise).mean())
    assert errors == sorted(errors, reverse=True) and sizes == sorted(sizes)
    assert sizes[2] > 2 * sizes[1] > 4 * sizes[0]


@pytest.mark.parametrize("name, count, share", [("a.gif", 60, 0.6), ("a.mp4", 120, 0.3)])
def test_frames_are_written_as_they_are_made(name, count, share, tmp_path):
    """Most of the file is on the disk when its last frame is drawn, though some wait to be written, and the encoder of
    an MP4 looks ahead by dozens."""
    if name == "a.mp4":
        pytest.importorskip("av")
    written = []

    def noise():
        random = np.random.default_rng(0)
        for _ in range(count):
            written.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield random.integers(0, 256, (256, 32, 3)).astype(np.uint8)

    save_animation(noise(), tmp_path / name, 25)
    assert written == sorted(written) and written[-1] > share * (tmp_path / name).stat().st_size


def test_frames_are_drawn_while_others_are_written(tmp_path, monkeypatch):
    third, write = threading.Event(), animation._write_gif
    waited = []

    def slow(pictures, path, fps):
        waited.append(third.wait(60))
        write(pictures, path, fps)

    def drawn():
        for number, frame in enumerate(frames(5)):
            if number == 3:
                third.set()
            yield frame

    monkeypatch.setattr(animation, "_write_gif", slow)
    save_animation(drawn(), tmp_path / "a.gif", 25)
    assert waited == [True] and len(read_gif(tmp_path / "a.gif")) == 5


@pytest.mark.parametrize("count", [1, 40])
def test_an_interrupted_drawing_leaves_the_old_file(count, tmp_path):
    """Also when frames wait to be written."""
    path = tmp_path / "a.gif"
    path.write_bytes(b"old")

    def drawn():
        yield from frames(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_animation(drawn(), path, 25)
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["a.gif"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("animation")]


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
@pytest.mark.parametrize("missing", [1, 0.5])
def test_a_full_disk_leaves_the_old_file(name, missing, tmp_path):
    """Also when the last byte alone does not fit. missing: bytes, or a share of the file."""
    if name == "a.mp4":
        pytest.importorskip("av")
    path = tmp_path / name
    save_animation(frames(20), path, 25)
    size = path.stat().st_size
    path.write_bytes(b"old")
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size - missing if missing == 1 else size * missing), hard))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: File too large"):
            save_animation(frames(20), path, 25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == [name]


def test_speeds(tmp_path):
    require_animation(tmp_path / "a.gif", 50)
    for name, fps, most in (("a.gif", 51, 50), ("a.gif", 0, 50), ("a.mp4", 121, 120)):
        with pytest.raises(UserError, match=f"--fps {fps}: must be from 1 to {most} for {name[1:]}"):
            require_animation(tmp_path / name, fps)
