"""Scenes of the toy world that tests set by hand."""

import numpy as np

from vidiff.data.toyworld.attributes import Layout, Scene, Thing

TIMES = np.arange(17) / 12


def alone(motion="still", shape="sphere", **settings):
    thing = Thing(shape=shape, motion=motion, **{k: settings.pop(k) for k in ("color", "size") if k in settings})
    return Scene((thing,), layout=Layout(turns=(0.0, 0.0, 0.0)), **settings)


def pair(motion="still", relation="left of", **settings):
    return Scene((Thing(motion=motion), Thing(shape="cube", color="blue")), relation, **settings)
