"""Training on drafts: what lies under the noise is what sampling from a draft shows the network."""

import pytest
import torch
from rich.console import Console

from vidiff import config
from vidiff.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from vidiff.diffusion.schedule import CosineSchedule
from vidiff.errors import ConfigError
from vidiff.models.drafter import Drafter, DrafterConfig
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig
from vidiff.models.plans import PlanConfig
from vidiff.sampling.loop import sample
from vidiff.sampling.solvers import DDIM
from vidiff.train.autoencoder_stage import to_video
from vidiff.train.drafted import DraftsConfig, cached_drafts
from vidiff.train.recipe import Recipe

SCHEDULE = CosineSchedule()
WORLD = {"kind": "toyworld", "clips": 4, "frames": 5, "height": 16, "width": 16, "fps": 6}
DRAFTER = {"kind": "drafter", "plans": {"frames": 5}}
PLANNER = {
    "kind": "denoiser",
    **{"name": "planner", "makes_plans": {"frames": 5}},
    "backbone": {"kind": "dit", "patch_size": [1, 1, 1], "dim": 32, "depth": 1, "num_heads": 2},
}


def test_what_is_seen_is_what_sampling_from_a_draft_shows():
    draft, laid, noise = torch.randn(3, 1, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    times, shown = torch.tensor([0.7, 0.55, 0.4, 0.3, 0.0], dtype=torch.float64), {}

    def denoise(x, t):
        shown[round(t.item(), 2)] = x
        return laid

    sample(denoise, SCHEDULE, DDIM(), noise, times, start=draft)
    for t in (0.7, 0.55, 0.4, 0.3):
        settings = DraftsConfig(share=1.0, begin=0.7)
        asked, drafts = torch.tensor([t / 0.7]), torch.cat([draft, laid], dim=1)
        seen, found = settings.seen(torch.zeros_like(draft), drafts, asked, SCHEDULE, torch.Generator())
        assert found.item() == pytest.approx(t)
        alpha, sigma = SCHEDULE.alpha_sigma(found)
        torch.testing.assert_close(alpha * seen + sigma * noise, shown[t], atol=1e-4, rtol=1e-4)


def test_the_other_samples_are_clips_at_their_own_times():
    clips, drafts, t = torch.zeros(64, 2, 1, 1, 1), torch.ones(64, 4, 1, 1, 1), torch.linspace(0.2, 0.99, 64)
    seen, found = DraftsConfig(share=0.25).seen(clips, drafts, t, SCHEDULE, torch.Generator().manual_seed(0))
    drafted = seen.flatten(1).all(1)
    assert torch.equal(found[~drafted], t[~drafted]) and not seen[~drafted].any()
    torch.testing.assert_close(found[drafted], 0.7 * t[drafted])
    assert 8 <= drafted.sum() <= 26


def test_drafts_are_kept_and_those_of_another_drafter_are_not_taken(tmp_path):
    data = ToyWorld(ToyWorldConfig(clips=2, frames=5, height=16, width=16, fps=6))
    torch.manual_seed(0)
    drafter = Drafter(DrafterConfig(dim=16, depth=1, scene_dim=16, scene_depth=1), PlanConfig(frames=5))
    pixels, quiet = PixelAutoencoder(PixelAutoencoderConfig(patch_size=4, patch_frames=4)), Console(quiet=True)
    made = cached_drafts(tmp_path, pixels, drafter, "one", data, quiet)
    video = to_video(data.clip(1)[None])
    with torch.no_grad():
        draft = drafter.draw(data.plan(1)[None], 16, 16)
    wanted = torch.cat([pixels.encode(draft.mean), pixels.encode(draft.over(video))], dim=1)[0]
    torch.testing.assert_close(made[1].float(), wanted, atol=0.03, rtol=0)  # bfloat16 where that is fast
    torch.nn.init.zeros_(drafter.scene[-1].weight)
    assert torch.equal(torch.stack(cached_drafts(tmp_path, pixels, drafter, "one", data, quiet)), torch.stack(made))
    assert not torch.equal(torch.stack(cached_drafts(tmp_path, pixels, drafter, "two", data, quiet)), torch.stack(made))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"predicts": "v"}, "cached latents that predict x0"),
        ({"stream": True}, "cached latents that predict x0"),
        ({"drafts": {"drafter": "draftr"}}, "earlier drafter stage 'draftr'. Did you mean drafter"),
        ({"drafts": {"share": 0.0}}, "share lies above 0"),
        ({"data": WORLD | {"frames": 9}}, "its plans are of 3 things"),
    ],
)
def test_stages_that_cannot_go_on_from_drafts_are_refused(changes, says):
    base = {"kind": "denoiser", "predicts": "x0", "drafts": {}} | changes
    stages = [PLANNER, DRAFTER, {"kind": "autoencoder"}, base]
    with pytest.raises(ConfigError, match=says):
        config.from_dict(Recipe, {"name": "r", "data": WORLD, "stages": stages})
