"""From the arguments of ``generate`` to the clips to make and where they go."""

import json
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from vidiff.cli.starts import SEEDS, Start, Ways, starts
from vidiff.data.video_write import format_of, suffix_of
from vidiff.diffusers_folder import is_diffusers_folder
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.travel import TRAVELS, checked_travel, literal, parsed, travels
from vidiff.errors import ConfigError, DataError, ResourceError
from vidiff.generation import Job
from vidiff.model_folder import ModelConfig, read_config
from vidiff.pipeline import Pipeline
from vidiff.sampling.noise import NoiseFrom
from vidiff.sizes import count_of
from vidiff.types import Size

_MAX_PROMPT = 2_000
_MAX_PROMPTS = 100_000
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True)
class _Row:
    prompt: str
    id: str
    negative: str | None = None
    seed: int | None = None
    travel: str | None = None


def plan(
    prompt: str | None,
    from_file: Path | None,
    output: Path | None,
    negative: str | None,
    seed: int | None,
    num: int,
    format: str | None,
    travel: str = TRAVELS[0],
    ways: Ways = SEEDS,
) -> list[Job]:
    """Return the clips to make, checked; ``travel`` is what several prompts in one depend on.

    Raises:
        ConfigError: for an empty prompt, or arguments that contradict one another.
        DataError: if the prompt file cannot be read.
    """
    if (prompt is None) == (from_file is None):
        raise ConfigError("give a prompt or --from-file, one of the two")
    if ways.to_prompt is not None:
        ways = replace(ways, to_prompt=checked(ways.to_prompt, "the prompt of --to-prompt"))
    if from_file is not None:
        if ways.options:
            raise ConfigError(f"{ways.options[0]} takes one prompt; leave out --from-file")
        folder = Path("clips") if output is None else output
        suffix = suffix_of(format_of(Path("x.mp4"), format))
        return [
            _job(
                row.prompt,
                row.seed if row.seed is not None else seed or 0,
                folder / f"{row.id}{suffix}",
                row.negative or negative,
                row.travel or travel,
            )
            for row in _rows(from_file)
        ]
    assert prompt is not None
    text = checked(prompt, "the prompt")
    clips = starts(seed, num, ways)
    named = output is not None and (output.suffix != "" or format == "frames")
    if len(clips) > 1 and named and output is not None and format != "frames":
        many = f"--num {num}" if ways.vary is None else f"--vary {ways.vary}"
        raise ConfigError(f"{output}: {many} needs a folder, not one file")
    if named and output is not None and len(clips) == 1:
        format_of(output, format)
        return [_job(text, clips[0].seed, output, negative, travel, clips[0])]
    suffix = suffix_of(format_of(Path("x.mp4"), format))
    folder = output or Path(".")
    return [_job(text, one.seed, folder / f"{slug(text)}-{one.name}{suffix}", negative, travel, one) for one in clips]


def check_travels(pipeline: Pipeline, jobs: list[Job], size: Size, num_steps: int) -> None:
    """Raise a ConfigError now if a job has more prompts than its clip has latent frames, or there are steps."""
    frames = pipeline.autoencoder.latents.shape(size.frames, size.height, size.width)[1]
    for job in jobs:
        if job.travel is not None:
            parsed(job.prompt, job.travel).table(num_steps, frames)


def samples(jobs: list[Job], guidance: Guidance, clips: int, negative: str = "") -> int:
    """Return how many samples of one call of the network a clip is at most, of ``clips`` that are made at once.

    ``negative`` is that of jobs without one of their own.
    """
    found = []
    for job in jobs:
        # Clips whose prompts take turns may be at different ones; one clip is at one of them.
        mixed = job.travel is not None and (job.travel != "time" or clips > 1)
        prompts = len(parsed(job.prompt, job.travel).prompts) if mixed and job.travel is not None else 1
        found.append(guidance.samples(prompts, bool(job.negative or negative)))
    return max(found)


def _job(text: str, seed: int, output: Path, negative: str | None, travel: str, start: Start | None = None) -> Job:
    kind = checked_travel(travel)
    arc, noise = (None, None) if start is None else (start.arc, start.noise)
    if not travels(text):
        return Job(literal(text), seed, output, negative or "", None, arc, noise)
    parsed(text, kind)
    if arc is not None and arc.to_prompt is not None:
        raise ConfigError("--to-prompt leads from one prompt to another, and this one holds several, parted by |")
    return Job(text, seed, output, negative or "", kind, arc, noise)


def check_writable(path: Path) -> None:
    """Raise a ResourceError now if ``path`` could not be written later; make its folder."""
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ResourceError(f"{path}: cannot be written: {folder} is not writable")


def slug(text: str) -> str:
    """Return a short file name for a prompt: ASCII letters, digits and dashes."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:48].strip("-") or "clip"


def _rows(path: Path) -> list[_Row]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines or len(lines) > _MAX_PROMPTS:
        raise DataError(f"{path}: holds {len(lines)} prompts; between 1 and {_MAX_PROMPTS} can be made at once")
    if path.suffix.lower() == ".jsonl":
        rows = [_json_row(f"{path}:{number}", line, index) for index, (number, line) in enumerate(lines)]
    else:
        rows = [
            _Row(checked(line, f"{path}:{number}"), f"{i:05d}-{slug(line)}") for i, (number, line) in enumerate(lines)
        ]
    seen: set[str] = set()
    for (number, _), row in zip(lines, rows, strict=True):
        if row.id in seen:
            raise DataError(f"{path}:{number}: the id {row.id} is there twice; each names one file")
        seen.add(row.id)
    return rows


def _json_row(place: str, line: str, index: int) -> _Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: not an object with a prompt")
    prompt = row.get("prompt", row.get("caption"))
    if not isinstance(prompt, str):
        raise DataError(f"{place}: needs a prompt or a caption")
    text = checked(prompt, place)
    name = row.get("id", f"{index:05d}-{slug(text)}")
    if not isinstance(name, str | int) or not _ID.fullmatch(str(name)) or str(name).startswith("."):
        raise DataError(f"{place}: the id {name!r} does not do as a file name; use letters, digits, '_', '-' and '.'")
    negative, seed = row.get("negative"), row.get("seed")
    if not isinstance(negative, str | None) or not isinstance(seed, int | None) or isinstance(seed, bool):
        raise DataError(f"{place}: negative must be text and seed a whole number")
    if seed is not None and not 0 <= seed < 2**32:
        raise DataError(f"{place}: seeds lie between 0 and {2**32 - 1}, got {seed}")
    travel = row.get("travel")
    if travel not in (None, *TRAVELS):
        raise DataError(f"{place}: travel must be one of {', '.join(TRAVELS)}, got {travel!r}")
    return _Row(text, str(name), negative, seed, travel)


def checked(prompt: str, place: str) -> str:
    """Return a prompt with single spaces; raises a ConfigError that names ``place`` if it cannot be one."""
    text = " ".join(prompt.split())
    if not text:
        raise ConfigError(f"{place} is empty: say what the clip shows")
    if len(text) > _MAX_PROMPT:
        raise ConfigError(f"{place} has {len(text)} characters; {_MAX_PROMPT} are the most")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ConfigError(f"{place} holds control or broken characters")
    return text


def noise_origin(name: str) -> NoiseFrom:
    """Return what ``--noise-from`` says; raises a ConfigError if it is neither of the two."""
    if name == "reference":
        return "reference"
    if name != "vidiff":
        raise ConfigError(f"--noise-from is vidiff or reference, got {name!r}")
    return "vidiff"


def check_stages(folder: Path, stages: str | None) -> None:
    """Raise a ConfigError if a model has no such stages, before it is loaded."""
    if stages is not None and not is_diffusers_folder(folder):
        own: ModelConfig = read_config(ModelConfig, folder)
        count_of(own.stages, stages)
