"""Training a denoiser to go on from drafts: what it sees under the noise is then what sampling shows it.

A clip that begins as its draft at time s and is carried on by a first-order solver has, at time t, this much of its
signal from the draft, and the rest from estimates: sqrt(SNR(s) / SNR(t)), which follows from the update of DDIM (Song
et al., 2021, equation 12). The things of the draft lie over every estimate (`vidiff.planning`).
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vidiff.data.toyworld.dataset import ToyWorld
from vidiff.diffusion.schedule import NoiseSchedule, log_snr
from vidiff.errors import ConfigError
from vidiff.models.build import Autoencoder
from vidiff.models.drafter import Drafter
from vidiff.tensors import expand_as, fast_bfloat16
from vidiff.train.autoencoder_stage import to_video
from vidiff.train.cache import Spans, digest, parts_of, read_clips


@dataclass(frozen=True)
class DraftsConfig:
    """Which samples of a stage go on from drafts."""

    drafter: str = "drafter"  # an earlier stage
    share: float = 0.75  # of the samples of a step; the others are clips under noise, as without drafts
    begin: float = 0.7  # time at which clips begin as drafts; sampling may begin a little later (draft_t)

    def __post_init__(self) -> None:
        for name in ("share", "begin"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} lies above 0 and up to 1, got {getattr(self, name)}")

    def seen(
        self, clips: Tensor, drafts: Tensor, t: Tensor, schedule: NoiseSchedule, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return what lies under the noise of each sample, and its time: before ``begin`` where that is a draft.

        Args:
            clips: latents, (B, C, f, h, w).
            drafts: see `cached_drafts`, (B, 2 C, f, h, w).
            t: times in [0, 1], (B,).
            schedule: of the noise.
            generator: decides which samples go on from drafts.
        """
        chosen = torch.rand(len(t), generator=generator, device=t.device) < self.share
        earlier = torch.where(chosen, t * self.begin, t)
        begun = log_snr(schedule, torch.full_like(t, self.begin))
        left = expand_as(((begun - log_snr(schedule, earlier)) / 2).exp().clamp(max=1), clips).to(clips)
        draft, laid = drafts.to(clips).chunk(2, dim=1)
        return torch.where(expand_as(chosen, clips), laid + left * (draft - laid), clips), earlier


def cached_drafts(
    root: Path, autoencoder: Autoencoder, drafter: Drafter, hashes: str, data: ToyWorld, console: Console
) -> list[Tensor]:
    """Return of every clip the latents of its draft and its own under the draft's things, float16 (2 C, f, h, w).

    ``hashes`` name the weights of the autoencoder and of the drafter.
    """
    device = next(autoencoder.buffers()).device

    @torch.no_grad()
    def draw(spans: Spans) -> Iterator[dict[str, Tensor]]:
        with closing(read_clips(data, list(chain(*spans)))) as clips:
            for span in spans:
                drawn = {}
                for index in span:
                    clip = to_video(next(clips)[None]).to(device)
                    with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
                        draft = drafter.draw(data.plan(index)[None].to(device), *clip.shape[3:])
                    both = autoencoder.encode(torch.cat([draft.mean, draft.over(clip)]))
                    drawn[f"{index:08d}"] = both.flatten(0, 1).half().cpu()
                yield drawn

    parts = parts_of(root / f"drafts-{digest(hashes, data.fingerprint)}", len(data), draw, "drawing drafts", console)
    return [part[name] for part in parts for name in sorted(part)]
