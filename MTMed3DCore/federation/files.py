"""What lies in the folder of a federation.

::

    FEDERATION/plan.json                 what the sites agreed on
    FEDERATION/federation.json           the round that is done, and the course of all rounds
    FEDERATION/round-0007.safetensors    the model after that round, with its precision
    FEDERATION/curves.png                the course as a picture
    FEDERATION/bundle/                   the finished model
    FEDERATION/flower/                   Flower's own settings and log, of a served one
"""

from __future__ import annotations

PLAN, COURSE, CURVES, BUNDLE, FLOWER = "plan.json", "federation.json", "curves.png", "bundle", "flower"
