"""From prompts to latents: text encoder, denoiser, guidance and solver put together."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidiff import resources
from vidiff.checkpoint import model_hash
from vidiff.decoding import Decode
from vidiff.diffusers_folder import folder_hash, is_diffusers_folder, open_diffusers_folder
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import DenoiseFn, guided
from vidiff.diffusion.travel import Mixed, PromptTravel, Travel, parsed
from vidiff.errors import CheckpointError, ConfigError, did_you_mean
from vidiff.hub import pinned
from vidiff.interop.image_encoder import ImageEncoder, load_image_encoder
from vidiff.memory import Strategy, Weights
from vidiff.model_folder import (
    ModelConfig,
    SamplingConfig,
    autoencoder_folder,
    autoencoder_of,
    load_denoiser,
    load_verifier,
    read_config,
)
from vidiff.models.build import Autoencoder, BackboneConfig, check_skippable
from vidiff.models.dit import DiTConfig
from vidiff.models.experts import ExpertsConfig
from vidiff.models.pixels import PixelAutoencoder
from vidiff.models.unet3d import UNet3DConfig
from vidiff.models.verifier import Verifier
from vidiff.placement import Placement
from vidiff.planning import Planner, around, load_planner
from vidiff.refining import Refiner
from vidiff.sampling.interpolation import Arc, ArcNoise, text_between
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import NoiseFrom, ReferenceNoise, SeededNoise
from vidiff.starting import given, started_from
from vidiff.text import sources
from vidiff.text.encoders import T5Config, TextEncoderConfig, build_text_encoder
from vidiff.text.passing import PassingTextEncoder
from vidiff.types import Conditioning, Size, TextEmbedding, TextEncoder


@dataclass(frozen=True)
class Pipeline:
    """A loaded model."""

    config: ModelConfig
    text_encoder: TextEncoder
    autoencoder: Autoencoder
    denoiser: Denoiser
    hash: str  # of the model folder
    refiners: tuple[Refiner, ...] = ()  # super-resolution stages in their order
    image_encoder: ImageEncoder | None = None  # of a model that starts from pictures, if it has one
    planner: Planner | None = None  # of a model whose clips begin from drafts
    verifier: Verifier | None = None  # picks among candidates, see `vidiff.candidates`
    placement: Placement | None = None  # of a model that does not stay on its device as a whole

    @contextmanager
    def denoising(self) -> Iterator[None]:
        """Have what denoises where it has to be, and the text encoder out of its way."""
        self._release_text()
        with nullcontext() if self.placement is None else self.placement.denoising():
            yield

    @contextmanager
    def coding(self) -> Iterator[None]:
        """Have the autoencoder where it has to be, and the text encoder out of its way."""
        self._release_text()
        with nullcontext() if self.placement is None else self.placement.coding():
            yield

    def release(self) -> None:
        """Free what a plan has put on the device, until it is needed again."""
        self._release_text()
        if self.placement is not None:
            self.placement.leave()

    def _release_text(self) -> None:
        if isinstance(self.text_encoder, PassingTextEncoder):
            self.text_encoder.release()

    @property
    def device(self) -> torch.device:
        return self.denoiser.null_tokens.device

    @property
    def weights(self) -> Weights:
        """What the weights of the denoiser's blocks are held in."""
        return "full" if self.placement is None else self.placement.strategy.weights

    @property
    def decode(self) -> Decode:
        """How frames are decoded, if memory does not run out."""
        return "whole" if self.placement is None else self.placement.strategy.decode

    def times(self, size: Size, sampling: SamplingConfig, drafted: bool = False) -> Tensor:
        """Return the times that sampling a clip of ``size`` visits, (num_steps + 1,) or fewer from a draft, float64."""
        shape = self.autoencoder.latents.shape(size.frames, size.height, size.width)
        times = sampling.times(self.config.schedule, math.prod(shape[1:]))
        return sampling.drafted(times) if drafted else times

    def can_draft(self, size: Size, sampling: SamplingConfig) -> bool:
        """Return whether clips of ``size`` may begin from drafts."""
        return self.planner is not None and self.planner.fits(size) and sampling.draft_t < 1

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        size: Size,
        sampling: SamplingConfig,
        *,
        negatives: Sequence[str] | None = None,
        travels: Sequence[Travel | None] | None = None,
        arcs: Sequence[Arc | None] | None = None,
        noise: Sequence[Tensor | None] | None = None,
        noise_from: NoiseFrom = "vidiff",
        pictures: Sequence[np.ndarray] | None = None,
        drafted: bool = False,
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[int, int, Tensor], None] | None = None,
    ) -> Tensor:
        """Return normalized latents (B, C, f, h, w), float32, one clip for each prompt and seed.

        Noise comes from each sample's own generator, so a clip does not depend on its neighbors.

        Args:
            prompts: B of them; an empty one stands for the learned null text.
            seeds: B of them.
            size: of the clips, on the latent grid.
            sampling: solver, steps and guidance; its candidates are `vidiff.generation`'s to try.
            negatives: B of them; None is the sampling's own.
            travels: B of them; one that is given makes its prompt several, see `vidiff.diffusion.travel`.
            arcs: B of them: where clips lie on the way to other seeds and prompts; None is at their own.
            noise: B of them, (C, f, h, w): what clips start from in place of the first draw of their seeds.
            noise_from: whose way of drawing noise from seeds it is.
            pictures: B of them that clips start from, RGB, uint8 (H, W, 3); None is none.
            drafted: begin from drafts of the prompts, which `can_draft`, rather than from noise alone.
            dtype: precision of the network; sampling itself is float32 and its coefficients float64.
            on_step: called as (steps done, num_steps, estimate of x_0).

        Raises:
            ConfigError: if the size is not on the latent grid, there are more prompts in one than frames or steps,
                guidance skips layers that the network does not have, noise has another size, or the model starts from
                no pictures, or from nothing else.
        """
        check_skippable(self.config.backbone, sampling.guidance.skip.layers)
        shape = self.autoencoder.latents.shape(size.frames, size.height, size.width)
        negatives = [sampling.negative] * len(prompts) if negatives is None else negatives
        device, times = self.device, self.times(size, sampling, drafted).to(self.device)
        conds = self._conditionings(prompts, travels or [None] * len(prompts), arcs, len(times) - 1, shape[1])
        away = self.text(negatives) if any(negatives) else None  # all texts first: their encoder may have to go then
        with self.coding() if pictures is not None else nullcontext():
            start = started_from(pictures, self.config.pictures, self.autoencoder, self.image_encoder, size, device)
        conds = replace(conds, conds=tuple(replace(cond, **start) for cond in conds.conds))
        null = Conditioning(self.denoiser.null_text(len(prompts)), **start)
        if self.placement is None:  # what is kept for all steps is in no plan of memory
            conds = replace(conds, conds=tuple(cond.with_text(cond.text.keeping()) for cond in conds.conds))
            null = null.with_text(null.text.keeping())
            away = None if away is None else away.keeping()
        negative = None if away is None else null.with_text(away)
        source = self._noise(seeds, arcs, noise_from)
        latents = given(source.randn(*shape), noise).to(device)
        told, schedule = partial(self.denoiser, told_steps=sampling.told_steps), self.config.schedule
        denoise = guided(told, conds, null, sampling.guidance, negative=negative, schedule=schedule, times=times)
        begin = None
        if drafted and self.planner is not None:
            draft = self.planner.draft(conds.conds[0].text, seeds, size)
            begin, denoise = self.autoencoder.encode(draft.mean), around(draft, self.autoencoder, denoise)
        with self.denoising(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return sample(
                denoise,
                schedule,
                sampling.solver,
                latents,
                times,
                start=begin,
                randn=lambda: source.randn(*shape).to(device),
                variance=self._variance(conds.conds[0]),
                temperature=sampling.temperature,
                on_step=on_step,
            ).float()

    def _noise(
        self, seeds: Sequence[int], arcs: Sequence[Arc | None] | None, noise_from: NoiseFrom
    ) -> SeededNoise | ArcNoise | ReferenceNoise:
        arcing = arcs is not None and any(arcs)
        if noise_from == "reference":
            if arcing:
                raise ConfigError("--noise-from reference draws the noise of one seed; leave out --to-seed and --vary")
            return ReferenceNoise(seeds, self.device)
        return ArcNoise(seeds, arcs) if arcs is not None and arcing else SeededNoise(seeds)

    def _variance(self, cond: Conditioning) -> DenoiseFn | None:
        if not self.denoiser.learned_variance:
            return None
        return lambda x, t: self.denoiser.with_variance(x, t, cond)[1]

    def _conditionings(
        self,
        prompts: Sequence[str],
        kinds: Sequence[Travel | None],
        arcs: Sequence[Arc | None] | None,
        num_steps: int,
        frames: int,
    ) -> Mixed:
        """Return what each of the clips' prompts says, and when; ``frames`` are latent ones."""
        if not any(kinds):
            return Mixed((Conditioning(self.text(prompts, arcs=arcs)),))
        found = [
            PromptTravel("blend", (prompt,), (1.0,)) if kind is None else parsed(prompt, kind)
            for prompt, kind in zip(prompts, kinds, strict=True)
        ]
        count = max(len(one.prompts) for one in found)
        table = torch.zeros(num_steps, count, len(found), frames, dtype=torch.float64)
        for index, one in enumerate(found):
            table[:, : len(one.prompts), index] = one.table(num_steps, frames)
        # A clip of fewer prompts than its neighbors says its first one once more, which then counts nothing.
        texts = [[(one.prompts[slot:] or one.prompts)[0] for one in found] for slot in range(count)]
        return Mixed(tuple(Conditioning(self.text(slot, arcs=arcs)) for slot in texts), table)

    def text(
        self, prompts: Sequence[str], denoiser: Denoiser | None = None, arcs: Sequence[Arc | None] | None = None
    ) -> TextEmbedding:
        """Return the states of ``prompts``, or those on the way that ``arcs`` say to others.

        An empty prompt becomes the null text that ``denoiser`` learned.
        """
        ways = [
            (p, 0.0) if arc is None or arc.to_prompt is None else (arc.to_prompt, arc.share)
            for p, arc in zip(prompts, arcs or [None] * len(prompts), strict=True)
        ]
        if any(share for _, share in ways):
            others = self.text([prompt for prompt, _ in ways], denoiser)
            return text_between(self.text(prompts, denoiser), others, [share for _, share in ways])
        null = (denoiser or self.denoiser).null_text(len(prompts))
        if not any(prompts):
            return null
        found = self.text_encoder.encode([prompt or "a" for prompt in prompts]).to(self.device)
        empty = torch.tensor([not prompt for prompt in prompts], device=self.device)
        return Conditioning(found).drop_text(empty, null).text


def find_model(name: str, fetch: Callable[[str], Path] | None = None) -> Path:
    """Return the folder of a model: a path, the name of a bundled one, or a hub id OWNER/NAME or OWNER/NAME@COMMIT.

    ``fetch`` fetches a hub id that is not here, and returns its folder.

    Raises:
        CheckpointError: if there is none; the message names the nearest bundled model.
    """
    path = Path(name)
    if (path / "config.yaml").is_file() or is_diffusers_folder(path):
        return path
    bundled = resources.bundled_models()
    if name in bundled:
        return bundled[name]
    if path.exists():
        raise CheckpointError(f"{name}: no model folder (it has neither config.yaml nor diffusers' model_index.json)")
    source, _, revision = name.partition("@")
    if sources.is_hub_id(source):
        pin = pinned().get(source, "")
        if fetch is not None and (not pin or revision not in ("", pin)):
            return fetch(name)
        if revision or pin:
            how = f"vidiff models pull {source}@{revision or pin}, or --download,"
            return sources.hub_folder(source, revision or pin, False, how)
        raise CheckpointError(f"{source}: not on this machine; fetch it with: vidiff models pull {source}")
    hint = did_you_mean(name, bundled) or f" Bundled models: {', '.join(bundled) or 'none'}."
    raise CheckpointError(f"{name}: neither a model folder nor a bundled model.{hint}")


def load(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    strategy: Strategy | None = None,
) -> Pipeline:
    """Return the model of a folder on ``device``.

    Args:
        folder: ours, or a published one in the diffusers layout.
        device: where it goes.
        dtype: of the weights of a published model's large networks, by default as published; ours are float32.
        strategy: of a published model, what goes to the device and when, see `vidiff.memory`; None: all, at once.

    Raises:
        CheckpointError: if weights are missing, damaged or do not fit.
        ConfigError: if a config is not valid, or a strategy is given for a model of ours, which are small.
    """
    if is_diffusers_folder(folder):
        return _load_published(folder, torch.device(device), dtype, strategy)
    if strategy is not None:
        raise ConfigError(f"{folder}: plans of memory are for published models; this one goes to the device as a whole")
    config: ModelConfig = read_config(ModelConfig, folder)
    autoencoder = autoencoder_of(config, autoencoder_folder(folder, config))
    denoiser = load_denoiser(folder, config, autoencoder.latents)
    text_encoder = build_text_encoder(_placed(config.text, folder), device)
    autoencoder = autoencoder.to(device)
    image_encoder = _image_encoder(config.backbone, folder, device, torch.float32)
    refiners: list[Refiner] = []
    size = config.size
    for name in config.stages:
        refiners.append(_refiner(folder, name, config, size.fps, device))
        size = refiners[-1].size(size)
    planner = load_planner(folder, config, device) if config.drafts else None
    verifier = load_verifier(folder, config, autoencoder.latents).to(device) if config.verifier else None
    return Pipeline(
        *(config, text_encoder, autoencoder, denoiser.to(device), model_hash(folder)),
        *(tuple(refiners), image_encoder, planner, verifier),
    )


def _load_published(
    folder: Path, device: torch.device, dtype: torch.dtype | None, strategy: Strategy | None
) -> Pipeline:
    opened = open_diffusers_folder(folder)
    chosen: torch.dtype = getattr(torch, opened.config.dtype) if dtype is None else dtype
    text_device = device if strategy is None or strategy.text != "host" else torch.device("cpu")
    placement: Placement | None = None

    def build() -> TextEncoder:
        if placement is not None and placement.strategy.text == "device":
            placement.leave()
        return build_text_encoder(opened.config.text, text_device, chosen)

    text_encoder: TextEncoder = PassingTextEncoder(build, opened.config.text_dim)
    if strategy is None:
        text_encoder = build_text_encoder(opened.config.text, device, chosen)
    null = text_encoder.encode([""]).tokens[0].float()
    home = device if strategy is None else torch.device("cpu")
    vae = opened.autoencoder(home)
    denoiser = opened.denoiser(vae, null, device if strategy is None else "meta", chosen)
    if strategy is not None:
        placement = Placement(strategy, device, denoiser, vae, partial(opened.read, denoiser, dtype=chosen))
    encoder = _image_encoder(opened.config.backbone, folder, home, chosen)  # small, and needed once a clip
    return Pipeline(
        *(opened.config, text_encoder, vae, denoiser, folder_hash(folder)), image_encoder=encoder, placement=placement
    )


def _image_encoder(
    backbone: BackboneConfig, folder: Path, device: torch.device | str, dtype: torch.dtype
) -> ImageEncoder | None:
    dit = backbone.expert if isinstance(backbone, ExpertsConfig) else backbone
    if not isinstance(dit, DiTConfig) or dit.image_dim is None:
        return None
    return load_image_encoder(folder / "image_encoder", folder / "image_processor", device, dtype)


def _placed(text: TextEncoderConfig, folder: Path) -> TextEncoderConfig:
    """Return ``text`` with a source that lies in the model's folder named in full."""
    return replace(text, source=str(folder)) if isinstance(text, T5Config) and text.source == "." else text


def _refiner(folder: Path, name: str, base: ModelConfig, fps: float, device: torch.device | str) -> Refiner:
    """Return one super-resolution stage of a cascade.

    Args:
        folder: of the cascade.
        name: of the stage, and its folder.
        base: config of the cascade.
        fps: frames a second of the clips that it takes.
        device: where it goes.

    Raises:
        CheckpointError: if it does not fit the others.
    """
    if not name.isidentifier():
        raise CheckpointError(f"{folder}: stages are words, got {name!r}")
    config: ModelConfig = read_config(ModelConfig, folder / name)
    if config.refines is None:
        raise CheckpointError(f"{folder / name}: is no super-resolution stage (refines is not set)")
    if config.text != base.text or config.text_dim != base.text_dim:
        raise CheckpointError(f"{folder / name}: does not fit {folder}: its text encoder is another one")
    frames_alone = isinstance(config.backbone, UNet3DConfig) and not config.backbone.temporal
    any_rate = frames_alone and config.refines.kind == "spatial_sr"
    if not any_rate and not math.isclose(config.refines.before(config.size).fps, fps):
        raise CheckpointError(
            f"{folder / name}: makes {config.size.fps:g} frames a second out of "
            f"{config.refines.before(config.size).fps:g}, but the stage before it makes {fps:g}"
        )
    assert config.pixels is not None  # its config sees to it
    pixels = PixelAutoencoder(config.pixels)
    denoiser = load_denoiser(folder / name, config, pixels.latents)
    return Refiner(name, config, config.refines, denoiser.to(device), pixels.to(device))
