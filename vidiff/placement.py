"""Where the parts of a large model are while a clip is made, as a plan of memory says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vidiff.diffusion.denoiser import Denoiser
from vidiff.memory import Strategy
from vidiff.models.build import Autoencoder
from vidiff.models.dit import SpaceTimeDiT
from vidiff.models.experts import Experts
from vidiff.models.offload import Offload, offloaded, place_rest
from vidiff.models.quantize import byte_weights


class Placement:
    """Moves a denoiser and an autoencoder to the device and away from it.

    The autoencoder begins on the host. The denoiser's networks begin on the meta device and are read when they are
    needed first, when the text encoder has gone: straight to the device, or to the host where the plan has them wait.
    """

    def __init__(
        self,
        strategy: Strategy,
        device: torch.device,
        denoiser: Denoiser,
        autoencoder: Autoencoder,
        read: Callable[[torch.device], object],
    ):
        """Make ready what is on the device for all phases; ``read`` gives the networks their weights on a device."""
        self.strategy, self.denoiser, self.autoencoder, self.read = strategy, denoiser, autoencoder, read
        self.changes: list[Callable[[], object]] = []  # of the weights, each time that they are read
        self._offloads: list[Offload] = []
        self._here = self._lowered = False
        # The null text says where the model is, and is small.
        denoiser.null_tokens = nn.Parameter(denoiser.null_tokens.to(device), requires_grad=False)
        self.device = denoiser.null_tokens.device  # with its number: cuda and the cuda:0 of weights are not equal
        whole = strategy.transformer == "resident" and strategy.weights == "full"
        self._read_to = self.device if whole else torch.device("cpu")
        # Where it is when it is not on the device. A plan without room for it on the host has it read again.
        again = whole and not strategy.parked and self.device.type != "cpu"
        self.home = torch.device("meta" if again else "cpu")
        if strategy.transformer == "swapped":
            for network in self.networks:
                network.register_forward_pre_hook(self._take_turns)

    @property
    def networks(self) -> list[SpaceTimeDiT]:
        """The transformer, or the experts."""
        backbone = self.denoiser.backbone
        found = list(backbone.experts) if isinstance(backbone, Experts) else [backbone]
        assert all(isinstance(one, SpaceTimeDiT) for one in found)
        return found  # type: ignore[return-value]

    @contextmanager
    def denoising(self) -> Iterator[None]:
        """Have the transformer where the plan wants it.

        Raises:
            CheckpointError: if a tensor that is read is not finite.
            ConfigError: if weights of a byte each are planned, but torchao is not installed.
        """
        if any(value.is_meta for network in self.networks for value in network.parameters()):
            self.read(self._read_to)
            for change in self.changes:
                change()
        weights = self.strategy.weights
        if weights != "full" and not self._lowered:  # not before: a LoRA is added to weights in full
            for network in self.networks:
                byte_weights(network, weights)
            self._lowered = True
        if not self._here:
            for network in self.networks:
                if self.strategy.transformer == "resident":
                    network.to(self.device)
                elif self.strategy.transformer == "streamed":
                    place_rest(network, network.blocks, self.device)
                    self._offloads.append(offloaded(network.blocks, self.device))
            self._here = True
        yield

    @contextmanager
    def coding(self) -> Iterator[None]:
        """Have the autoencoder on the device, and the transformer only if the plan has room for both."""
        if self.strategy.parked:
            self.leave()
        self.autoencoder.to(self.device)
        try:
            yield
        finally:
            self.autoencoder.to("cpu")

    def leave(self) -> None:
        """Send the transformer away from the device, until it is needed again."""
        if not self._here:
            return
        for offload in self._offloads:
            offload.close()
        self._offloads.clear()
        for network in self.networks:
            network.to(self.home)
        self._here = False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _take_turns(self, network: nn.Module, args: tuple[Tensor, ...]) -> None:
        if next(network.parameters()).device == self.device:
            return
        for other in self.networks:
            if other is not network:
                other.to("cpu")
        network.to(self.device)
