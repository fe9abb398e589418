"""The report: its table, its page, and what a real browser makes of it."""

import base64
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.clips import frames
from vidiff.data.video_io import read_clip
from vidiff.data.video_write import write_video
from vidiff.errors import ConfigError
from vidiff.metrics import web_clips
from vidiff.metrics.report import markdown, write_report
from vidiff.metrics.results import Clip, Neighbor, Results, Value
from vidiff.metrics.verdict import verdict

NASTY = '</script><script>alert("1")</script> \'a\' & <b onclick="x()">'


def value(metric="fvd", number=10.0, half=1.0, better="lower", protocol="n=64", **more):
    interval = None if half is None else (number - half, number + half)
    return Value(metric, protocol, number, better, interval, **more)


def test_markdown_is_a_table_whose_cells_stay_cells():
    label = "a|b *c* <i>\nd"
    results = [
        Results(label, (value("m", 10, protocol="p=1|2"),)),
        Results("other", (value("m", 20, protocol="p=1|2"),)),
    ]
    lines = markdown(results).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert r"a\|b \*c\* \<i> d **best**" in rows[2] and r"`m[p=1\|2]`, lower is better" in rows[2]
    assert "9.0 to 11.0" in rows[2] and "best" not in rows[3]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips as `vidiff` writes them."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(3):
        write_video(folder / f"{index}.mp4", frames(5, 32, 32, index), 12)
    return folder


def result(clips, label="model", number=10.0, count=3, **more):
    keys = [f"key{i}" for i in range(count)]
    values = (
        value("fvd", number, floor=4.0),
        value("psnr", 30.0, None, "higher", "frames", per_clip={key: 30.0 + i for i, key in enumerate(keys)}),
    )
    shown = tuple(Clip(key, str(clips / f"{i % 3}.mp4"), f"prompt {i} {NASTY}", i) for i, key in enumerate(keys))
    return replace(Results(label, values, shown, command=f"vidiff evaluate {NASTY}", versions={"torch": "2"}), **more)


class Page(HTMLParser):
    """A page's elements, with their tags checked for balance."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]

    def text(self, tag):
        return [data.strip() for name, data in self.texts if name == tag and data.strip()]


def written(path, results, **options):
    write_report(path, results, **options)
    text = path.read_text()
    return text, Page(text)


def test_a_page_is_balanced_and_needs_nothing_else(tmp_path, clips):
    near = tuple(Neighbor(f"key{i}", f"train{i}", str(clips / f"{i}.mp4"), 0.5 - i / 10, i == 1) for i in range(3))
    excluded = (("bad.mp4", f"damaged {NASTY}"),)
    first = result(clips, "run, step 100", step=100, seconds_per_clip=2.0, neighbors=near, excluded=excluded)
    second = result(clips, f"run {NASTY}, step 200", 20.0, step=200, seconds_per_clip=1.0)
    for results in ([first], [first, second]):
        text, page = written(tmp_path / "report.html", results)
        assert not re.search(r"https?:|@import|url\(", text)
        assert all(
            a[name].startswith("data:") for _, a in page.found for name in ("src", "href", "poster") if name in a
        )
        assert len(page.all("script")) == 1 and "onclick" not in {name for _, a in page.found for name in a}
        assert page.text("p")[1] == verdict(results)[0]


def test_a_page_of_results_without_anything_is_a_page(tmp_path):
    _, page = written(tmp_path / "report.html", [Results("bare", ())])
    assert "Nothing was measured." in page.text("p")


def test_protocol_lines_and_commands_can_be_copied_whole(tmp_path, clips):
    _, page = written(tmp_path / "report.html", [result(clips)])
    assert page.text("code") == ["fvd[n=64]", "psnr[frames]", f"vidiff evaluate {NASTY}"]
    assert page.text("button") == ["Copy"] * 3


def test_best_is_marked_only_where_intervals_allow_it(tmp_path, clips):
    _, page = written(tmp_path / "report.html", [result(clips, "a", 10.0), result(clips, "b", 20.0)])
    assert page.text("em") == ["best"] and "2.0 to 4.0" not in page.text("td")
    _, page = written(tmp_path / "report.html", [result(clips, "a", 10.0), result(clips, "b", 11.0)])
    assert page.text("em") == []


def test_plots_show_what_there_is_to_plot(tmp_path, clips):
    runs = [result(clips, f"run, step {step}", 900.0 / step, step=step, seconds_per_clip=2.0) for step in (10, 20, 30)]
    _, page = written(tmp_path / "report.html", runs)
    assert page.text("title")[1:3] == ["fvd", "run, 10: 90 [89, 91]"] and "fvd and seconds per clip" in page.text(
        "title"
    )
    assert {"Training", "Quality against time"} <= set(page.text("h2"))
    _, page = written(tmp_path / "report.html", runs[:1])
    assert not {"Training", "Quality against time"} & set(page.text("h2"))


@pytest.mark.parametrize(
    ("labels", "lines"),
    [
        (("a, step 5", "a, step 10"), 1),
        (("a-0005", "a-0010"), 1),
        (("step 5", "step 10"), 1),
        (("a, step 5", "b, step 10"), 0),  # two runs
        (("a15", "a1"), 0),
    ],
)
def test_checkpoints_of_one_run_are_joined(tmp_path, labels, lines):
    runs = [Results(label, (value(),), step=step) for label, step in zip(labels, (5, 10), strict=True)]
    _, page = written(tmp_path / "report.html", runs)
    assert len(page.all("polyline")) == lines


def test_prompts_are_ranked_by_a_metric_of_clips(tmp_path, clips):
    _, page = written(tmp_path / "report.html", [result(clips, count=12)], clips=2)
    prompts = [int(text.split()[1]) for text in page.text("figcaption")]
    assert prompts == [11, 10, 9, 8, 0, 1, 2, 3, 4, 5]
    assert page.text("h2")[1:4] == ["Best prompts by psnr", "Worst prompts by psnr", "More clips"]
    with pytest.raises(ConfigError, match=r"psnrr.*Did you mean psnr\?"):
        write_report(tmp_path / "report.html", [result(clips)], by="psnrr")


def test_flagged_neighbors_come_first_then_the_nearest(tmp_path, clips):
    near = [Neighbor(f"key{i}", f"train{i}", "", distance, i == 1) for i, distance in enumerate((0.3, 0.9, 0.2))]
    _, page = written(tmp_path / "report.html", [replace(result(clips), neighbors=tuple(near))])
    assert [text for text in page.text("small") if text.startswith("training")] == [
        f"training train{i}" for i in (1, 2, 0)
    ]
    assert page.text("p").count("in a shard") == 3


def test_a_clip_is_embedded_once_and_its_bytes_are_the_files(tmp_path, clips):
    near = (Neighbor("key0", "train0", str(clips / "1.mp4"), 0.1, False),)
    _, page = written(tmp_path / "report.html", [replace(result(clips), neighbors=near)])
    held = {a["id"]: base64.b64decode(a["src"].split(",")[1]) for a in page.all("video") if "src" in a}
    assert sorted(held.values()) == sorted((clips / f"{i}.mp4").read_bytes() for i in range(3))
    again = [a["data-same"] for a in page.all("video") if "data-same" in a]
    assert len(again) == 2 and set(again) <= set(held)
    assert all("muted" in a and "autoplay" not in a and a["tabindex"] == "0" for a in page.all("video"))


def test_a_poster_is_the_first_frame(tmp_path, clips):
    _, page = written(tmp_path / "report.html", [result(clips, count=1)])
    poster = tmp_path / "poster.webp"
    poster.write_bytes(base64.b64decode(page.all("video")[0]["poster"].split(",")[1]))
    shown = np.asarray(Image.open(poster).convert("RGB")).astype(float)
    assert np.abs(shown - read_clip(clips / "0.mp4").frames[0]).mean() < 6


def test_clips_that_are_large_or_not_for_browsers_are_encoded_again(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (4, 130, 170, 3), np.uint8)
    write_video(tmp_path / "lossless.mp4", frames(3, 33, 47), 12, lossless=True)
    write_video(tmp_path / "large.mp4", noise, 12)
    monkeypatch.setattr(web_clips, "CLIP_BYTES", 60_000)
    shown = tuple(Clip(name, str(tmp_path / f"{name}.mp4")) for name in ("lossless", "large"))
    text, page = written(tmp_path / "report.html", [Results("model", (), shown)])
    for attrs, size in zip(page.all("video"), ((3, 32, 48, 3), None), strict=True):
        data = base64.b64decode(attrs["src"].split(",")[1])
        assert len(data) <= 60_000 and data[data.index(b"avcC") + 5] in (66, 77, 100)
        assert size is None or read_clip(data).frames.shape == size
    assert "2 of 2 were encoded again" in text


def test_a_full_page_and_an_unreadable_clip_are_said(tmp_path, clips):
    (tmp_path / "bad.mp4").write_bytes(b"no clip")
    shown = (
        Clip("a", str(tmp_path / "bad.mp4")),
        Clip("b", str(tmp_path / "none.mp4")),
        Clip("c", str(clips / "0.mp4")),
    )
    text, page = written(tmp_path / "report.html", [Results("model", (), shown)], max_bytes=100)
    assert not page.all("video") and "1 did not fit" in text and "at most 100 bytes" in text
    assert sum("not a clip" in line for line in page.text("p")) == 1
    assert sum("No such file" in line for line in page.text("p")) == 1


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def screenshot(page, picture, width, profile):
    """Return what a headless Chromium wrote on stderr while it drew a page."""
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync enable-logging=stderr hide-scrollbars virtual-time-budget=2000"
    )
    command = [CHROMIUM, *(f"--{switch}" for switch in switches.split()), f"--user-data-dir={profile}"]
    command += [f"--window-size={width},1500", f"--screenshot={picture}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_a_report_without_complaint(tmp_path, clips):
    page = tmp_path / "report.html"
    runs = [result(clips, f"run, step {step}", 900.0 / step, step=step, seconds_per_clip=2.0) for step in (10, 20)]
    text, _ = written(page, runs)
    for width in (400, 1400):
        assert "CONSOLE" not in screenshot(page, tmp_path / f"{width}.png", width, tmp_path / "profile")
        with Image.open(tmp_path / f"{width}.png") as picture:
            assert picture.size == (width, 1500)
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    # The check above sees what it should: the page's policy refuses anything from outside, and says so.
    page.write_text(text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'))
    assert "CONSOLE" in screenshot(page, tmp_path / "refused.png", 400, tmp_path / "profile")
