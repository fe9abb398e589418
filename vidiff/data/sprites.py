"""The words of the sprites: what a character is made of, which sheets draw it, and how captions say it.

The sheets are those of the Liberated Pixel Cup; their artists stand in ATTRIBUTION.txt and AUTHORS.txt beside the data.
"""

from dataclasses import dataclass, fields
from typing import Any

from vidiff.errors import DataError, did_you_mean

NONE = "none"
SEXES = ("male", "female")
DIRECTIONS = {  # in the order of a sheet's rows
    "up": ("facing away", "seen from behind", "facing up"),
    "left": ("facing left", "to the left"),
    "down": ("facing the viewer", "facing down", "seen from the front"),
    "right": ("facing right", "to the right"),
}
ACTIONS = {
    "cast": ("casting a spell", "raising both arms to cast magic", "summoning magic"),
    "thrust": ("thrusting forward", "stabbing forward", "lunging with a stab"),
    "walk": ("walking", "strolling", "on the march"),
    "slash": ("slashing", "swinging a blade", "making a slash attack"),
    "shoot": ("shooting a bow", "firing an arrow", "drawing a bow"),
    "fall": ("falling down hurt", "collapsing to the ground", "getting knocked down"),
}
SKINS = {
    "light": "light-skinned",
    "tanned": "tanned",
    "dark": "dark-skinned",
    "darkelf": "grey-skinned dark elf",
    "orc": "bright green orc",
    "red_orc": "olive-skinned orc",
    "skeleton": "skeleton",  # of men only
}
HAIRS = {
    "plain": "short",
    "long": "long",
    "mohawk": "mohawk",
    "ponytail": "ponytail",
    "messy1": "messy",
    "bangs": "bangs-cut",
    "jewfro": "curly",
    "princess": "princess-style",
    "swoop": "swept",
    "unkempt": "unkempt",
}
_PLAIN_COLORS = ("black", "blonde", "blue", "brown", "green", "pink", "purple", "white")
HAIR_COLORS = {color: color for color in _PLAIN_COLORS} | {"gray": "grey", "redhead": "red"}
CAPES = ("black", "blue", "brown", "green", "pink", "red", "white", "yellow")
BACKGROUNDS = {  # sRGB, 0 to 255
    "grey": (128, 128, 128),
    "green": (86, 125, 70),
    "sand": (206, 182, 132),
    "blue": (92, 128, 176),
    "white": (236, 236, 236),
    "dark": (40, 40, 48),
}
# Garments as captions call them, and their sheets without the suffix.
_ARMOR = {
    "plate armor": "torso/plate/chest_{sex}",
    "golden armor": "torso/gold/chest_{sex}",
    "leather armor": "torso/leather/chest_{sex}",
    "chainmail": "torso/chain/mail_{sex}",
}
_CLOTHS = ("white", "brown", "teal", "maroon")
_SLEEVES = {"male": "longsleeve", "female": "sleeveless"}
_SHIRTS = {
    sex: {f"{color} shirt": f"torso/shirts/{cut}/{sex}/{color}_{cut}" for color in _CLOTHS}
    for sex, cut in _SLEEVES.items()
}
_ROBES = {f"{color} robe": f"torso/robes_female_no_th-sh/{color}" for color in ("blue", "red", "purple", "black")}
TORSOS = {"male": {NONE: "", **_SHIRTS["male"], **_ARMOR}, "female": {**_SHIRTS["female"], **_ARMOR, **_ROBES}}
LEGS = {
    **{f"{color} pants": f"legs/pants/{{sex}}/{color}_pants_{{sex}}" for color in ("white", "red", "teal", "magenta")},
    "metal greaves": "legs/armor/{sex}/metal_pants_{sex}",
    "golden greaves": "legs/armor/{sex}/golden_greaves_{sex}",
}
FEET = {
    NONE: "",
    **{f"{color} shoes": f"feet/shoes/{{sex}}/{color}_shoes_{{sex}}" for color in ("brown", "black")},
    **{f"{metal} boots": f"feet/armor/{{sex}}/{metal}_boots_{{sex}}" for metal in ("metal", "golden")},
}
HEADS = {
    NONE: "",
    **{f"{metal} helmet": f"head/helms/{{sex}}/{metal}_helm_{{sex}}" for metal in ("metal", "golden")},
    **{f"{cloth} hood": f"head/hoods/{{sex}}/{cloth}_hood_{{sex}}" for cloth in ("cloth", "chain")},
    "leather cap": "head/caps/{sex}/leather_cap_{sex}",
    "red bandana": "head/bandanas/{sex}/red",
}


@dataclass(frozen=True)
class Character:
    """One character and what it does; raises DataError where the sprites have no such one."""

    sex: str
    skin: str
    hair: str
    hair_color: str
    torso: str
    legs: str
    feet: str
    head: str
    cape: str
    action: str
    direction: str
    background: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), values_of(self, field.name)
            if value not in known:
                hint = did_you_mean(value, known) if isinstance(value, str) else ""
                raise DataError(
                    f"no sprite has the {field.name} {value!r:.100} beside its other attributes; there are: "
                    f"{', '.join(known)}.{hint}"
                )

    @property
    def layers(self) -> list[str]:
        """Return the sheets that draw it, from back to front, without their suffix."""
        garments = (FEET[self.feet], LEGS[self.legs], TORSOS[self.sex][self.torso])
        names = [
            f"behind_body/cape/normal/female/cape_{self.cape}" if self.cape != NONE else "",
            f"body/{self.sex}/{self.skin}",
            *garments,
            f"hair/{self.sex}/{self.hair}/{self.hair_color}" if self.hair != NONE else "",
            HEADS[self.head],
        ]
        return [name.format(sex=self.sex) for name in names if name]


def character_of(attributes: dict[str, Any]) -> Character:
    """Return the character that a row's attributes describe; raises DataError if they describe none."""
    names = [field.name for field in fields(Character)]
    missing = [name for name in names if name not in attributes]
    unknown = [name for name in attributes if name not in names]
    if missing or unknown:
        wrong = "; ".join(
            f"{', '.join(some)}: {what}" for some, what in ((missing, "missing"), (unknown, "unknown")) if some
        )
        raise DataError(f"attributes do not describe a sprite: {wrong}. They are: {', '.join(names)}")
    return Character(**attributes)


def values_of(character: Character, name: str) -> tuple[str, ...]:
    """Return the values that an attribute can have beside the character's others; see `Character`."""
    male = character.sex == "male"
    match name:
        case "sex":
            return SEXES
        case "skin":
            return tuple(skin for skin in SKINS if male or skin != "skeleton")
        case "hair":
            return (NONE, *HAIRS)
        case "hair_color":
            return tuple(HAIR_COLORS) if character.hair != NONE else (NONE,)
        case "cape":
            return (NONE,) if male else (NONE, *CAPES)
        case "direction":  # who falls is seen from the front only
            return tuple(DIRECTIONS) if character.action != "fall" else ("down",)
        case "torso":
            return tuple(TORSOS[character.sex])
        case "legs":
            return tuple(LEGS)
        case "feet":
            return tuple(FEET)
        case "head":
            return tuple(HEADS)
        case "action":
            return tuple(ACTIONS)
        case "background":
            return tuple(BACKGROUNDS)
    raise ValueError(f"sprites have no attribute {name}")


def stated_in(caption: str, character: Character) -> dict[str, str]:
    """Return the attributes that a caption states, with their values; most captions leave some out.

    The sex is none of them: the garments of both are drawn so differently that nothing else could be compared.

    Raises:
        DataError: if it states none at all.
    """
    phrases = {"skin": (SKINS[character.skin],), "action": ACTIONS[character.action]}
    if character.action != "fall":
        phrases["direction"] = DIRECTIONS[character.direction]
    phrases["background"] = (f"on a {character.background} background",)
    for name in ("torso", "legs", "feet", "head"):
        phrases[name] = (getattr(character, name),)
    phrases["cape"] = (f"{character.cape} cape",)
    if character.hair != NONE:
        phrase = f"{HAIRS[character.hair]} {HAIR_COLORS[character.hair_color]} hair"
        phrases["hair"] = phrases["hair_color"] = (phrase,)
    found = {
        name: getattr(character, name)
        for name, said in phrases.items()
        if getattr(character, name) != NONE and any(phrase in caption for phrase in said)
    }
    if not found:
        raise DataError(
            f"the caption {caption!r:.200} states none of the attributes beside it, so that nothing can be judged; "
            "caption the clip in the words of the sprites"
        )
    return found
