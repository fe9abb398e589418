"""PSNR, SSIM and LPIPS of two clips against independent implementations, and the inception score."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torchmetrics.functional.image import lpips as reference_lpips
from torchmetrics.image.inception import InceptionScore

from vidiff.errors import CheckpointError, ConfigError, DataError, NumericalError
from vidiff.metrics.pairwise import LPIPS, inception_score, psnr, ssim


def pair(frames=3, height=20, width=33, strength=12, seed=0):
    """Return a clip of smooth colors and the same with noise."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.uniform(0, 255, (frames, 3, 4, 5)))
    smooth = nn.functional.interpolate(small, (height, width), mode="bicubic").permute(0, 2, 3, 1)
    noise = torch.from_numpy(rng.normal(0, strength, smooth.shape))
    return tuple(v.round().clamp(0, 255).byte().contiguous() for v in (smooth, smooth + noise))


@pytest.mark.parametrize("strength", [1, 12, 80])
def test_psnr_and_ssim_are_scikit_images(strength):
    a, b = pair(strength=strength)
    assert psnr(b, a) == pytest.approx(peak_signal_noise_ratio(a.numpy(), b.numpy()), abs=1e-6)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    frames = zip(a.numpy(), b.numpy(), strict=True)
    wanted = np.mean([structural_similarity(x, y, channel_axis=-1, **settings) for x, y in frames])
    assert ssim(a, b) == pytest.approx(wanted, abs=1e-6)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12) and psnr(a, b) == psnr(b, a)


def test_even_frames_differ_in_luminance_alone():
    a, b = (torch.full((1, 11, 11, 3), level, dtype=torch.uint8) for level in (100, 150))
    constant = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 150 + constant) / (100**2 + 150**2 + constant), abs=1e-9)
    assert psnr(a, b) == pytest.approx(20 * np.log10(255 / 50))


def test_an_identical_clip_is_finite_and_an_identical_frame_is_no_error():
    a, b = pair(frames=4)
    assert psnr(a, a) == 100 and ssim(a, a) == 1
    # Half of the frames without an error halve it: 3 dB more.
    half = torch.cat([a[:2], b[2:]])
    assert psnr(half, a) == pytest.approx(psnr(b[2:], a[2:]) + 10 * np.log10(2))


def test_pairs_are_compared_frame_by_frame():
    a, b = pair(frames=4)
    turned = psnr(a.flip(0), b.flip(0)), ssim(a.flip(0), b.flip(0))
    assert turned == pytest.approx((psnr(a, b), ssim(a, b)), rel=1e-12)
    assert ssim(a, b) == pytest.approx(np.mean([ssim(a[k : k + 1], b[k : k + 1]) for k in range(4)]), rel=1e-12)
    assert psnr(a, b.flip(0)) < psnr(a, b) and ssim(a, b.flip(0)) < ssim(a, b)


def features(net):
    """Return torchvision's feature layers, random; torchmetrics takes its slices out of them."""
    layers, dim = [], 3

    def conv(dim_out, *shape):
        nonlocal dim
        layers.extend([nn.Conv2d(dim, dim_out, *shape), nn.ReLU()])
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
        dim = dim_out

    if net == "alex":
        conv(64, 11, 4, 2), layers.append(nn.MaxPool2d(3, 2)), conv(192, 5, 1, 2), layers.append(nn.MaxPool2d(3, 2))
        conv(384, 3, 1, 1), conv(256, 3, 1, 1), conv(256, 3, 1, 1), layers.append(nn.MaxPool2d(3, 2))
    else:
        for dim_out, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                conv(dim_out, 3, 1, 1)
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def reference(net, monkeypatch):
    """Return torchmetrics' network with the published heads, on a random trunk in place of torchvision's."""
    torch.manual_seed(0)
    monkeypatch.setattr(reference_lpips, "_get_tv_model_features", lambda name, pretrained=False: features(net))
    return reference_lpips._LPIPS(pretrained=True, net=net, pnet_rand=True)


def tensors_of(network):
    """Return its tensors under our names."""
    found = {}
    for name, tensor in network.state_dict().items():
        slot, *rest = name.split(".")
        if slot == "net":
            found[".".join(["features", *rest[1:]])] = tensor
        elif slot != "lins":
            found[f"heads.{slot.removeprefix('lin')}.weight"] = tensor
    return found


@pytest.mark.parametrize(("net", "size"), [("alex", (64, 80)), ("alex", (31, 45)), ("vgg", (32, 24))])
def test_lpips_is_torchmetrics(net, size, tmp_path, monkeypatch):
    theirs = reference(net, monkeypatch)
    save_file(tensors_of(theirs), tmp_path / "lpips.safetensors")
    ours = LPIPS(tmp_path / "lpips.safetensors", net)
    a, b = pair(9, *size, strength=30)  # more frames than go through at once
    x, y = (v.permute(0, 3, 1, 2) / 127.5 - 1 for v in (a, b))
    wanted = theirs(x, y).mean().item()
    assert wanted > 1e-3 and ours(a, b) == pytest.approx(wanted, abs=1e-5, rel=1e-5)
    assert ours(a, a) == 0
    assert ours(b, a) == pytest.approx(ours(a, b), rel=1e-5)


def test_lpips_refuses_weights_that_are_not_its_own(tmp_path, monkeypatch):
    tensors = tensors_of(reference("alex", monkeypatch))
    path = tmp_path / "lpips.safetensors"
    with pytest.raises(ConfigError, match="alex, vgg"):
        LPIPS(path, "squeeze")
    save_file({name: tensor for name, tensor in tensors.items() if name != "heads.4.weight"}, path)
    with pytest.raises(CheckpointError, match=r"heads\.4\.weight"):
        LPIPS(path)
    save_file(tensors, path)
    small = torch.zeros(1, 30, 40, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match="31 x 31"):
        LPIPS(path)(small, small)


class Rows(nn.Module):
    """Hands logits through, so that torchmetrics scores them."""

    num_features = 5

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")  # torchmetrics warns of its buffer, and of a deviation of one split
def test_the_inception_score_is_torchmetrics_on_one_split():
    logits = 2 * torch.randn(60, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = InceptionScore(feature=Rows(), splits=1)
    theirs.update(logits)
    found = inception_score(logits, splits=1)
    assert found.mean == pytest.approx(theirs.compute()[0].item(), rel=1e-9) and math.isnan(found.std)


def test_the_inception_score_counts_classes_that_are_certain():
    certain = 1000 * torch.eye(4).repeat(10, 1)  # ten of each of four classes
    assert inception_score(certain, splits=1).mean == pytest.approx(4)
    assert inception_score(torch.zeros(40, 4)).mean == pytest.approx(1)
    assert inception_score(1000 * torch.eye(4)[:1].expand(40, 4)).mean == pytest.approx(1)


def test_splits_are_drawn_by_the_seed_and_scored_alone():
    logits = 3 * torch.randn(23, 4, generator=torch.Generator().manual_seed(5))
    found = inception_score(logits, splits=4, seed=1)
    assert inception_score(logits, splits=4, seed=1) == found != inception_score(logits, splits=4, seed=2)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    alone = [inception_score(part, splits=1).mean for part in logits[order].split([6, 6, 6, 5])]
    assert (found.mean, found.std) == pytest.approx((np.mean(alone), np.std(alone, ddof=1)))


def test_what_cannot_be_compared_is_refused():
    a, _ = pair()
    for other, word in ((a[:2], "one shape"), (a[:, :, 1:], "one shape"), (a.float(), "uint8")):
        for metric in (psnr, ssim):
            with pytest.raises(DataError, match=word):
                metric(a, other)
    with pytest.raises(DataError, match="11 x 11"):
        ssim(a[:, :10], a[:, :10])
    for wrong in (torch.ones(19, 5), torch.ones(20), torch.ones(20, 1)):
        with pytest.raises(DataError, match="splits"):
            inception_score(wrong)
    with pytest.raises(ConfigError, match="splits"):
        inception_score(torch.ones(20, 5), splits=0)
    with pytest.raises(NumericalError, match="finite"):
        inception_score(torch.full((20, 5), float("nan")))
