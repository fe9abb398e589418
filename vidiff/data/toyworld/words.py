"""How the toy world's attributes can be said. The first phrase of each is the plain one."""

Verb = tuple[str, str]  # "rolls", "rolling"

SHAPE_NOUNS = {
    "sphere": ("sphere", "ball", "orb"),
    "cube": ("cube", "box", "block"),
    "cylinder": ("cylinder", "barrel", "drum"),
    "cone": ("cone", "pointed cone", "party hat"),
    "pyramid": ("pyramid", "square pyramid", "four-sided pyramid"),
    "torus": ("torus", "ring", "donut"),
}
COLOR_ADJECTIVES = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "lemon yellow", "golden yellow"),
    "green": ("green", "emerald", "leaf green"),
    "cyan": ("cyan", "turquoise", "aqua"),
    "blue": ("blue", "cobalt blue", "royal blue"),
    "purple": ("purple", "violet", "plum purple"),
    "pink": ("pink", "rose pink", "bubblegum pink"),
    "white": ("white", "snow-white", "pure white"),
    "black": ("black", "jet black", "pitch-black"),
}
SIZE_ADJECTIVES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
MATERIAL_ADJECTIVES = {"matte": ("matte", "dull", "chalky"), "shiny": ("shiny", "glossy", "polished")}
GROUND_PHRASES = {
    "grass": ("on green grass", "across the grass", "on a lawn", "in a meadow"),
    "sand": ("on sand", "across the sand", "on a beach", "in the desert"),
    "snow": ("on snowy ground", "across a field of snow", "on white snow"),
    "water": ("on water", "on the surface of a lake", "on the sea"),
    "stone": ("on stone", "on stone paving", "across cobblestones"),
    "checkerboard": ("on a checkerboard floor", "on checkered tiles", "across a chessboard floor"),
}
LIGHT_PHRASES = {
    "day": ("in daylight", "under a blue sky", "on a sunny day"),
    "sunset": ("at sunset", "at dusk under an orange sky", "in the golden evening light"),
    "night": ("at night", "under the stars", "in the moonlight"),
    "overcast": ("under an overcast sky", "on a cloudy day", "in flat gray light"),
}
WEATHER_PHRASES = {
    "clear": ("in clear weather", "in dry weather", "with clear air"),
    "rain": ("in the rain", "while rain is falling", "in a downpour"),
    "snowfall": ("while snow is falling", "in a snowfall", "with snowflakes in the air"),
}
# What the camera does: as a sentence after "the camera", and as a shot.
CAMERA_PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    "still": (("stays still", "static shot"), ("does not move", "locked-off shot"), ("is fixed", "fixed camera shot")),
    "pan left": (("pans left", "pan left"), ("turns to the left", "left pan"), ("sweeps left", "camera panning left")),
    "pan right": (
        ("pans right", "pan right"),
        ("turns to the right", "right pan"),
        ("sweeps right", "camera panning right"),
    ),
    "tilt up": (("tilts up", "tilt up"), ("tilts upward", "upward tilt"), ("looks up", "camera tilting up")),
    "tilt down": (
        ("tilts down", "tilt down"),
        ("tilts downward", "downward tilt"),
        ("looks down", "camera tilting down"),
    ),
    "dolly in": (("dollies in", "dolly in"), ("moves forward", "push-in shot"), ("moves closer", "dolly-in shot")),
    "dolly out": (("dollies out", "dolly out"), ("moves backward", "pull-out shot"), ("pulls back", "dolly-out shot")),
    "arc": (
        ("arcs around the scene", "arc shot"),
        ("circles around the scene", "orbiting camera shot"),
        ("swings around in an arc", "arcing shot"),
    ),
    "aerial": (
        ("looks on from above", "aerial shot"),
        ("watches from high above", "bird's-eye view"),
        ("looks down from the sky", "overhead shot"),
    ),
    "clockwise": (
        ("rotates clockwise", "clockwise camera rotation"),
        ("rolls clockwise", "camera roll clockwise"),
        ("spins clockwise", "clockwise roll"),
    ),
}
RELATION_PHRASES = {
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
    "behind": ("behind", "in back of", "beyond"),
    "in front of": ("in front of", "before", "ahead of"),
    "on top of": ("on top of", "atop", "resting on"),
}
THIRD_PHRASES = ("with {} in the background", "with {} further back", "with {} far behind")

_TO = {
    "left": ("left", "to the left", "leftward"),
    "right": ("right", "to the right", "rightward"),
    "toward": ("toward the camera", "forward to the viewer", "closer to us"),
    "away": ("away from the camera", "away into the distance", "off into the distance"),
}
_GO: dict[bool, tuple[Verb, ...]] = {
    True: (("rolls", "rolling"), ("tumbles", "tumbling"), ("moves", "moving")),
    False: (("slides", "sliding"), ("glides", "gliding"), ("moves", "moving")),
}
_VERBS: dict[str, tuple[Verb, ...]] = {
    "still": (("stands still", "standing still"), ("rests", "resting"), ("sits motionless", "sitting motionless")),
    "bounce": (("bounces", "bouncing"), ("bounces up and down", "bouncing up and down"), ("hops", "hopping")),
    "spin": (("spins", "spinning"), ("rotates", "rotating"), ("twirls in place", "twirling in place")),
    "jump": (("jumps", "jumping"), ("leaps up", "leaping up"), ("jumps into the air", "jumping into the air")),
    "fall": (("falls from the sky", "falling from the sky"), ("drops down", "dropping down"), ("falls", "falling")),
    "rise": (("rises", "rising"), ("floats up", "floating up"), ("lifts off the ground", "lifting off the ground")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger"), ("expands", "expanding")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("contracts", "contracting")),
}
# These take the second object behind them.
MEETING_VERBS: dict[str, tuple[Verb, ...]] = {
    "orbit": (("orbits", "orbiting"), ("circles", "circling"), ("revolves around", "revolving around")),
    "collide": (("collides with", "colliding with"), ("crashes into", "crashing into"), ("bumps into", "bumping into")),
}


def verbs(motion: str, rolls: bool) -> list[Verb]:
    """Return every way to say a motion that needs no second object."""
    if motion in _TO:
        return [(f"{finite} {to}", f"{gerund} {to}") for finite, gerund in _GO[rolls] for to in _TO[motion]]
    return list(_VERBS[motion])
