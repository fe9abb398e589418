"""The keys of low-rank adapters (LoRA; Hu et al., 2021) for Wan transformers, in the dialects that files come in.

A key names a module of the transformer and a part of its change. The dialects differ in both:

- ``diffusers``: ``transformer.blocks.0.attn1.to_q.lora_A.weight``, also behind ``base_model.model.``, or bare;
- ``native``: ``diffusion_model.blocks.0.self_attn.q.lora_down.weight``, with the original release's names;
- ``diffsynth``: ``blocks.0.self_attn.q.lora_A.default.weight``, bare, with the name of a PEFT adapter inside;
- ``musubi``: ``lora_unet_blocks_0_self_attn_q.lora_down.weight``, where every dot of a name is an underscore.

``transformer_2.`` stands before the modules of the second expert of Wan 2.2.
"""

import re
from dataclasses import dataclass
from typing import Literal

from vidiff.interop.wan_transformer import BLOCK_NAMES, NAMES

Dialect = Literal["diffusers", "native", "diffsynth", "musubi"]
Part = Literal["down", "up", "up_bias", "alpha", "diff", "diff_b"]

MUSUBI_PREFIX = "lora_unet_"

# What only image-to-video transformers have, by diffusers' names, without the block.
IMAGE_MODULES = frozenset(names[0] for ours, names in (NAMES | BLOCK_NAMES).items() if "image" in ours)

# Either release's name, or one of them with underscores: the name in diffusers. The tables of the two releases share
# no name for different modules, with or without dots; a test holds it.
_TOP_OF = {spelled: names[0] for names in NAMES.values() for spelled in names}
_BLOCK_OF = {spelled: names[0] for names in BLOCK_NAMES.values() for spelled in names}
_FLAT_TOP_OF = {spelled.replace(".", "_"): name for spelled, name in _TOP_OF.items()}
_FLAT_BLOCK_OF = {spelled.replace(".", "_"): name for spelled, name in _BLOCK_OF.items()}
_NATIVE = {names[1] for names in (*NAMES.values(), *BLOCK_NAMES.values()) if names[0] != names[1]}

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "transformer_2.")
_KEY = re.compile(
    r"(?P<module>.+)\."
    r"(?:(?P<factor>lora_A|lora_B|lora_down|lora_up)(?:\.(?P<adapter>\w+))?\.(?P<leaf>weight|bias)"
    r"|(?P<plain>alpha|diff|diff_b))"
)


@dataclass(frozen=True)
class LoRAKey:
    """What a key says."""

    source: str  # the module as the file names it
    module: str | None  # the module in diffusers' names; None is one that no Wan transformer here has
    part: Part
    second: bool  # of the second expert
    dialect: Dialect


def parse_key(key: str) -> LoRAKey | None:
    """Return what a key of a LoRA file says, or None if it says nothing that can be added to a weight."""
    found = _KEY.fullmatch(key)
    if found is None or (found["leaf"] == "bias" and found["factor"] in ("lora_A", "lora_down")):
        return None
    source, part = found["module"], _part(found)
    if source.startswith(MUSUBI_PREFIX):
        return LoRAKey(source, _unflattened(source.removeprefix(MUSUBI_PREFIX).lstrip("_")), part, False, "musubi")
    name, prefixes = source, set()
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            prefixes.add(prefix)
    block, rest = split_block(name)
    dialect: Dialect = "native" if rest in _NATIVE or "diffusion_model." in prefixes else "diffusers"
    if dialect == "native" and not prefixes and found["adapter"]:
        dialect = "diffsynth"
    known = (_BLOCK_OF if block else _TOP_OF).get(rest)
    return LoRAKey(source, None if known is None else block + known, part, "transformer_2." in prefixes, dialect)


def split_block(module: str) -> tuple[str, str]:
    """Split ``blocks.0.attn1.to_q`` into ``blocks.0.`` and ``attn1.to_q``; the first is empty outside blocks."""
    found = re.fullmatch(r"(blocks\.[0-9]{1,4}\.)(.+)", module)
    return (found[1], found[2]) if found else ("", module)


def our_name(module: str) -> str | None:
    """Return the `SpaceTimeDiT` module or parameter for a name in diffusers, or None if there is none."""
    block, rest = split_block(module)
    names = _OUR_BLOCK if block else _OUR_TOP
    return block + names[rest] if rest in names else None


def their_name(module: str) -> str | None:
    """Return the name in diffusers of a `SpaceTimeDiT` module, or None if the published transformer has none."""
    block, rest = split_block(module)
    names = (BLOCK_NAMES if block else NAMES).get(rest)
    return None if names is None else block + names[0]


_OUR_TOP = {names[0]: ours for ours, names in NAMES.items()}
_OUR_BLOCK = {names[0]: ours for ours, names in BLOCK_NAMES.items()}


def _part(found: re.Match[str]) -> Part:
    if found["plain"]:
        plain: dict[str, Part] = {"alpha": "alpha", "diff": "diff", "diff_b": "diff_b"}
        return plain[found["plain"]]
    if found["leaf"] == "bias":
        return "up_bias"
    return "down" if found["factor"] in ("lora_A", "lora_down") else "up"


def _unflattened(name: str) -> str | None:
    found = re.fullmatch(r"blocks_([0-9]{1,4})_(.+)", name)
    if found is None:
        return _FLAT_TOP_OF.get(name)
    known = _FLAT_BLOCK_OF.get(found[2])
    return None if known is None else f"blocks.{found[1]}.{known}"
