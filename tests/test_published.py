"""Published models through our own classes, against the reference library's pipelines."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.published import (
    NEGATIVE,
    PROMPT,
    SIZE,
    WIDE,
    difference,
    diffusers,
    image_to_video,
    noise,
    ours,
    reference,
    text_to_video,
)
from vidiff.decoding import decode
from vidiff.diffusion.guidance import Guidance
from vidiff.errors import ConfigError
from vidiff.interop.schedulers import from_diffusers, to_diffusers
from vidiff.pipeline import load
from vidiff.sampling.multistep import DEIS, DPMpp2M, DPMpp2MSDE, DPMpp3M
from vidiff.sampling.one_step import DDIM, DDPM, LCM, Euler, EulerAncestral
from vidiff.sampling.two_stage import DPMpp2S, Heun
from vidiff.sampling.unipc import UniPC


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return text_to_video(folder), load(folder)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newer")
    return text_to_video(folder, newer=True), load(folder)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("kind", "size", "stride"), [("plain", SIZE, 8), ("newer", WIDE, 16)])
def test_a_text_makes_the_latents_and_frames_of_the_reference(request, kind, size, stride, scale):
    pipeline, model = request.getfixturevalue(kind)
    x = noise(size, stride)
    expected = reference(pipeline, size=size, latents=x, guidance_scale=scale)
    found = ours(model, scale, size=size, noise=[x[0]])
    assert difference(found, expected) < 1e-3
    frames = reference(pipeline, "np", size=size, latents=x, guidance_scale=scale)
    made = decode(model.autoencoder, found)[0].numpy()
    assert np.abs(made - 255 * np.asarray(frames)[0]).max() < 1.5


FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0)
SDE = dict(algorithm_type="sde-dpmsolver++", **FLOW)


def unipc(**settings):
    return diffusers.UniPCMultistepScheduler(**settings, **FLOW)


def dpm(**settings):
    return diffusers.DPMSolverMultistepScheduler(**settings, **FLOW)


def single(**settings):
    return diffusers.DPMSolverSinglestepScheduler(lower_order_final=True, **settings, **FLOW)


def ended(scheduler):
    """Have the last step of a scheduler lead to t = 0, where its own leaves the noise as it is or gives NaN."""
    step = scheduler.step

    def to_the_end(said, timestep, x, **kwargs):
        if scheduler.step_index == len(scheduler.timesteps) - 1:
            return (x - scheduler.sigmas[scheduler.step_index] * said,)
        return step(said, timestep, x, **kwargs)

    scheduler.step = to_the_end
    return scheduler


def bh1(order):
    return ended(unipc(solver_order=order, solver_type="bh1"))


def deis(order, **settings):
    return ended(diffusers.DEISMultistepScheduler(solver_order=order, **settings, **FLOW))


SAMPLERS = {
    "unipc 1": (lambda: unipc(solver_order=1), UniPC(order=1), "reference"),
    "unipc 2": (unipc, UniPC(), "reference"),
    "unipc 3": (lambda: unipc(solver_order=3), UniPC(order=3, lower_order_final=True), "reference"),
    "bh1 1": (lambda: bh1(1), UniPC(order=1, variant="bh1"), "reference"),
    "bh1 2": (lambda: bh1(2), UniPC(variant="bh1"), "reference"),
    "bh1 3": (lambda: bh1(3), UniPC(order=3, variant="bh1", lower_order_final=True), "reference"),
    "ddim": (lambda: dpm(solver_order=1), DDIM(), "native"),
    "dpmpp_2m": (dpm, DPMpp2M(), "native"),
    "dpmpp_3m": (lambda: dpm(solver_order=3), DPMpp3M(lower_order_final=True), "native"),
    "dpmpp_3m to the end": (lambda: dpm(solver_order=3, lower_order_final=False), DPMpp3M(), "native"),
    "dpmpp_2s": (single, DPMpp2S(middle="grid"), "native"),
    "dpmpp_1s": (lambda: single(solver_order=1), DDIM(), "native"),
    "dpmpp_2m_sde": (lambda: diffusers.DPMSolverMultistepScheduler(**SDE), DPMpp2MSDE(), "native"),
    "ddpm": (lambda: diffusers.DPMSolverMultistepScheduler(solver_order=1, **SDE), DDPM(), "native"),
    "deis 1": (lambda: deis(1), DEIS(order=1, lower_order_final=True), "native"),
    "deis 2": (lambda: deis(2), DEIS(order=2, lower_order_final=True), "native"),
    "deis 3": (lambda: deis(3), DEIS(lower_order_final=True), "native"),
    "deis to the end": (lambda: deis(3, lower_order_final=False), DEIS(), "native"),
    "euler": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0), Euler(), "euler"),
    "euler even": (lambda: diffusers.FlowMapEulerDiscreteScheduler(shift=5.0), Euler(), "even"),
    "euler stochastic": (
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True),
        LCM(),
        "euler",
    ),
    "euler_ancestral": (lambda: diffusers.LTXEulerAncestralRFScheduler(), EulerAncestral(axis="flow"), "euler"),
    "heun": (lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=5.0), Heun(axis="flow"), "euler"),
    "lcm": (lambda: diffusers.FlowMatchLCMScheduler(shift=5.0), LCM(), "euler"),
}


@pytest.mark.parametrize("steps", [4, 7, 16])  # from 15 on, orders are not lowered at the end
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_that_both_have_makes_the_same_latents(plain, name, steps):
    pipeline, model = plain
    scheduler, solver, grid = SAMPLERS[name]
    before, pipeline.scheduler = pipeline.scheduler, scheduler()
    read = from_diffusers(json.loads(pipeline.scheduler.to_json_string()))
    assert (read.solver, read.spacing.grid) == (solver, grid)
    try:
        # The noise within a run comes from the global generator there, whatever generator is given.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            expected = reference(pipeline, guidance_scale=3.0, steps=steps)
    finally:
        pipeline.scheduler = before
    own = replace(model.config.sampling, num_steps=steps, **read._asdict())
    assert difference(ours(model, 3.0, steps, own), expected) < 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_written_as_it_is_read(name):
    config = json.loads(SAMPLERS[name][0]().to_json_string())
    read = from_diffusers(config)
    written = to_diffusers(read.solver, read.spacing.shift)
    if "deis" in name or name in ("euler even", "euler_ancestral"):  # others than diffusers' own, or no other grid
        assert written["_class_name"] in ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
    else:
        assert from_diffusers(written) == read
        again = getattr(diffusers, written["_class_name"]).from_config(written)
        assert from_diffusers(json.loads(again.to_json_string())) == read


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (diffusers.DDIMScheduler(), "DDIMScheduler is not known"),
        (diffusers.DEISMultistepScheduler(), "only schedulers of flows"),
        (dpm(solver_type="heun"), r"dpmsolver\+\+ of order 2 \(heun\) is not known"),
        (dpm(use_karras_sigmas=True), "use_karras_sigmas: True is not known; use_karras_sigmas: False is"),
        (unipc(final_sigmas_type="sigma_min"), "final_sigmas_type: sigma_min is not known"),
        (single(solver_order=3), r"dpmsolver\+\+ of order 3"),
    ],
)
def test_a_scheduler_that_samples_otherwise_is_refused(scheduler, message):
    with pytest.raises(ConfigError, match=message):
        from_diffusers(json.loads(scheduler.to_json_string()))


@pytest.mark.parametrize("name", ["deis", "bh1"])
def test_what_the_reference_does_not_end_has_an_end_here(plain, name):
    """Two samplers whose own last step is no use: noise is left, or nothing at all."""
    pipeline, _ = plain
    settings = dict(solver_type="bh1") if name == "bh1" else {}
    kind = diffusers.UniPCMultistepScheduler if name == "bh1" else diffusers.DEISMultistepScheduler
    before, pipeline.scheduler = pipeline.scheduler, kind(**settings, **FLOW)
    try:
        found = reference(pipeline, latents=noise(), guidance_scale=3.0)
        sigmas = pipeline.scheduler.sigmas
    finally:
        pipeline.scheduler = before
    assert found.isnan().all() if name == "bh1" else sigmas[-1] == sigmas[-2] > 0.5


def test_noise_is_drawn_as_the_reference_draws_it(plain):
    pipeline, model = plain
    expected = reference(pipeline, generator=torch.Generator().manual_seed(7), guidance_scale=3.0)
    sampling = replace(model.config.sampling, num_steps=4, guidance=Guidance(scale=3.0))
    found = model.sample([PROMPT], [7], SIZE, sampling, negatives=[NEGATIVE], noise_from="reference")
    assert difference(found, expected) < 1e-3


def test_two_experts_take_turns_as_in_the_reference(tmp_path):
    pipeline = text_to_video(tmp_path, experts=True)
    expected = reference(pipeline, latents=noise(), guidance_scale=4.0, guidance_scale_2=3.0, steps=6)
    model = load(tmp_path)
    assert difference(ours(model, "4@0.875:1,3", 6, noise=[noise()[0]]), expected) < 1e-3
    assert difference(ours(model, 3.0, 6, noise=[noise()[0]]), expected) > 1e-3
    model.denoiser.backbone.experts[0] = model.denoiser.backbone.experts[1]
    assert difference(ours(model, "4@0.875:1,3", 6, noise=[noise()[0]]), expected) > 0.01  # so that the turn is seen


@pytest.mark.parametrize("kind", ["clip", "concat", "known", "newer"])
def test_a_picture_starts_the_clip_of_the_reference(tmp_path, kind):
    from PIL import Image

    pipeline = image_to_video(tmp_path, kind)
    size, stride = (WIDE, 16) if kind == "newer" else (SIZE, 8)
    picture = np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)
    x = noise(size, stride)
    expected = reference(pipeline, size=size, image=Image.fromarray(picture), latents=x, guidance_scale=3.0)
    model = load(tmp_path)
    found = ours(model, 3.0, size=size, noise=[x[0]], pictures=[picture])
    assert difference(found, expected) < 1e-3
    if kind in ("clip", "concat"):
        with pytest.raises(ConfigError, match="give one with --image"):
            ours(model, 3.0)
    else:
        without = ours(model, 3.0, size=size, noise=[x[0]])
        assert difference(without, expected) > 0.01  # so that the picture is seen


def test_a_picture_that_a_model_does_not_take_is_refused(plain):
    with pytest.raises(ConfigError, match="takes no picture"):
        ours(plain[1], 3.0, pictures=[np.zeros((8, 8, 3), np.uint8)])
