"""Optical flow between neighboring frames of a clip, and the pixels at which it can be trusted."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.errors import ConfigError, DataError

LEAST_SIDE = 8  # pixels: one patch of DIS
_TOGETHER = 8  # pairs that go through RAFT at once


class FlowEstimator(Protocol):
    """Finds the motion between two frames. Each pair counts alone: the others of a call change nothing."""

    @property
    def flow_name(self) -> str:
        """What changes with the numbers, for protocol lines."""
        ...

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return where the pixels of each first frame are in its second one, float32 (N, H, W, 2).

        Args:
            first: uint8, (N, H, W, 3).
            second: of the same shape.

        Returns:
            Displacements in pixels, to the right and down.
        """
        ...


@dataclass(frozen=True)
class DISFlow:
    """Dense inverse search (Kroeger et al., 2016): OpenCV's, preset medium, whose result no number of threads changes.

    Small frames are enlarged by a whole factor and their flow is averaged back: the preset matches patches of 8 x 8 and
    stops at half of the resolution, where 64 x 64 pixels hold only a few. Motion up to about a tenth of the shorter
    side from frame to frame is mostly found.
    """

    side: int = 256  # pixels that the shorter side has at least, after enlarging

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ConfigError(f"side must be at least 1, got {self.side}")

    @property
    def flow_name(self) -> str:
        """The method with its settings and the version of OpenCV."""
        return f"dis-medium,{self.side},opencv {_opencv().__version__}"

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the flow of each pair, see `FlowEstimator`.

        Raises:
            ConfigError: if OpenCV is not installed.
        """
        cv2 = _opencv()
        height, width = first.shape[1:3]
        factor = -(-self.side // min(height, width))
        size = (factor * width, factor * height)

        def gray(frame: Tensor) -> Any:
            picture = cv2.cvtColor(frame.contiguous().numpy(), cv2.COLOR_RGB2GRAY)
            return picture if factor == 1 else cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)

        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flows = torch.empty(*first.shape[:3], 2)
        for flow, a, b in zip(flows, first, second, strict=True):
            large = torch.from_numpy(search.calc(gray(a), gray(b), None))
            flow.copy_(large.reshape(height, factor, width, factor, 2).mean((1, 3)) / factor)
        return flows


DIS = DISFlow()


@dataclass(frozen=True)
class RAFTFlow:
    """RAFT (Teed & Deng, 2020), the flow of the published temporal metrics, from a TorchScript archive.

    Its forward takes frames (N, 3, H, W) in [-1, 1], of sides that are multiples of 8, and returns the flow
    (N, 2, H, W) or a list of ever better ones, as torchvision's does, saved so:
    ``torch.jit.script(raft_large(weights)).save("raft.pt")``.
    """

    network: Any
    sha256: str  # of the archive
    side: int = 256  # pixels that the shorter side has at least, after enlarging: its pyramid takes 128

    @property
    def flow_name(self) -> str:
        """The method with the hash of its weights."""
        return f"raft@sha256:{self.sha256[:12]},{self.side}"

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the flow of each pair, see `FlowEstimator`."""
        pairs = zip(first.split(_TOGETHER), second.split(_TOGETHER), strict=True)
        return torch.cat([self._flow(*pair) for pair in pairs])

    def _flow(self, first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[1:3]
        factor = -(-self.side // min(height, width))
        size = (factor * height, factor * width)
        device = next(self.network.parameters(), torch.empty(0)).device

        def ready(frames: Tensor) -> Tensor:
            pixels = frames.permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
            if factor > 1:
                pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False).clamp(-1, 1)
            return F.pad(pixels, (0, -size[1] % 8, 0, -size[0] % 8), mode="replicate")

        found = self.network(ready(first), ready(second))
        flow = (found[-1] if isinstance(found, list | tuple) else found)[..., : size[0], : size[1]]
        small = F.avg_pool2d(flow.float(), factor) / factor
        return small.permute(0, 2, 3, 1).cpu()


@dataclass(frozen=True)
class ClipFlow:
    """Motion between the neighboring frames of a clip. A mask is True where the two directions agree."""

    forward: Tensor  # from frame k to frame k + 1, pixels to the right and down, float32 (F - 1, H, W, 2)
    backward: Tensor  # from frame k + 1 to frame k
    forward_mask: Tensor  # pixels of frame k that are found again in frame k + 1, bool (F - 1, H, W)
    backward_mask: Tensor  # pixels of frame k + 1 that are found again in frame k


def clip_flow(clip: Tensor, estimator: FlowEstimator = DIS) -> ClipFlow:
    """Return the motion between the neighboring frames of a clip, uint8 (F, H, W, 3).

    Raises:
        DataError: if it is no clip, has one frame, or has frames under 8 x 8.
        ConfigError: if what the estimator needs is not installed.
    """
    check_clip(clip, least_frames=2, least_side=LEAST_SIDE)
    forward, backward = estimator(clip[:-1], clip[1:]), estimator(clip[1:], clip[:-1])
    pairs = list(zip(forward, backward, strict=True))
    return ClipFlow(
        forward,
        backward,
        torch.stack([_consistent(there, back) for there, back in pairs]),
        torch.stack([_consistent(there, back) for back, there in pairs]),
    )


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel's value from where the flow says it went, bilinearly; beyond the edge is the edge.

    Args:
        frame: the frame it went to, (H, W, C), of any number type.
        flow: (H, W, 2), pixels to the right and down; zero fetches the frame itself, exactly.

    Returns:
        float32, (H, W, C).
    """
    last = _last(flow)
    places = _places(flow).clamp(min=0).minimum(last)
    corner = places.floor().minimum(last - 1)
    right, down = (places - corner)[..., None].unbind(2)
    x, y = corner.long().unbind(2)
    frame = frame.float()
    above = frame[y, x].lerp(frame[y, x + 1], right)
    below = frame[y + 1, x].lerp(frame[y + 1, x + 1], right)
    return above.lerp(below, down)


def check_clip(clip: Tensor, *, least_frames: int = 1, least_side: int = 1) -> None:
    """Raise DataError unless ``clip`` is uint8 (F, H, W, 3), with so many frames of such a size."""
    if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype != torch.uint8:
        raise DataError(f"a clip is uint8 (F, H, W, 3), got {clip.dtype} {tuple(clip.shape)}")
    frames, height, width = clip.shape[:3]
    if frames < least_frames:
        raise DataError(f"the clip has {frames} frames, but {least_frames} are needed; use longer clips")
    if min(height, width) < least_side:
        raise DataError(
            f"frames of {height} x {width} are too small, {least_side} x {least_side} are needed; use larger clips"
        )


def _consistent(there: Tensor, back: Tensor) -> Tensor:
    """Return where a pixel that goes there and back arrives near its place (Sundaram et al., 2010), bool (H, W)."""
    places = _places(there)
    inside = ((places >= 0) & (places <= _last(there))).all(2)
    back = warp(back, there)
    missed = (there + back).square().sum(2)
    return inside & (missed < 0.01 * (there.square() + back.square()).sum(2) + 0.5)


def _places(flow: Tensor) -> Tensor:
    """Return where each pixel goes, (H, W, 2): its column and row, moved by the flow."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in flow.shape[:2]), indexing="ij")
    return torch.stack([x, y], 2) + flow


def _last(flow: Tensor) -> Tensor:
    """Return the last column and row."""
    height, width = flow.shape[:2]
    return torch.tensor([width - 1, height - 1])


def _opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError:
        raise ConfigError("optical flow needs OpenCV; run: pip install 'vidiff[eval]'") from None
    return cv2
