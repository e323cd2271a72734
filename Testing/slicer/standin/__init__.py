"""A stand-in for the part of 3D Slicer that no wheel carries: its Qt widget layer.

The scene, its nodes, the logics and `slicer.util` are Slicer's own, from the ``slicer-core`` wheel. What this package
stands in for is what only the application has:

* `qt`: PySide6 with PythonQt's manners (properties are attributes; ``connect("signal(type)", f)``);
* `ctk` and the qMRML widgets that the panel uses, with the members that the panel calls and no others;
* ``slicer.app``, ``slicer.modules``, ``slicer.ScriptedLoadableModule``, ``slicer.i18n`` and ``slicer.packaging``.

It refuses what PythonQt would refuse: an unknown attribute, an unknown signal, an unknown widget class in a .ui file.
It proves that the panel's own logic works on real nodes and real Qt events; it does not prove that Slicer's widgets
behave as these do. With the environment variable ``SLICER_PYTHON`` set to a folder of Slicer's own Python files
(``ScriptedLoadableModule.py`` and so on), those are used in place of the versions here.
"""

from __future__ import annotations

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from standin.application import Application, install

__all__ = ["Application", "install"]
