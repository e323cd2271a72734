"""Every family of networks, and what training and inference must know of it. A fourth family is one more entry here.

Free of torch, so that a command's help can name the families. What a family's class must offer is told in
`MTMed3DCore.networks.interface`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from MTMed3DCore.errors import WrongUse

if TYPE_CHECKING:
    from torch import nn

    from MTMed3DCore.networks.interface import TaskNetwork

TASKS = ("segmentation", "detection", "grading")
"""Every task that any family has. On folders of images ``grading`` is the classification by their labels."""


@dataclass(frozen=True)
class Family:
    """A family of networks.

    Args:
        name: by which commands, settings and bundles know it.
        summary: one line.
        reference: the paper.
        tasks: what it can do.
        spatial_dims: 3 for brain studies, 2 for folders of images.
        builder: ``module:function`` that makes a network from the arguments in a bundle's ``network_def``.
        stride: of the deepest level, whose norms need two voxels a side in training.
        sized: whether the builder takes ``spatial_dims``, ``in_channels``, ``regions``, ``labels`` and ``window``; one
            that does not is made for brain studies alone.
        brain: further arguments of the builder for brain studies.
        feature_size, image_feature_size: width for brain studies and for images unless settings say otherwise.
        loss: ``module:class`` of the task losses, called with the tasks and the anchor shapes.
        balancing: how its tasks are weighed unless settings say otherwise.
        weights: of the tasks for ``fixed`` balancing, 1 where none is given: the family's published loss.
    """

    name: str
    summary: str
    reference: str
    tasks: tuple[str, ...]
    spatial_dims: tuple[int, ...]
    builder: str
    stride: int = 32
    sized: bool = True
    brain: Mapping[str, Any] = field(default_factory=dict)
    feature_size: int = 24
    image_feature_size: int = 24
    loss: str = "MTMed3DCore.training.hybrid:HybridLoss"
    balancing: str = "fixed"
    weights: Mapping[str, float] = field(default_factory=dict)

    def build(self, *arguments: Any, **options: Any) -> TaskNetwork:
        """A network with fresh weights.

        Raises:
            WrongUse: a setting that no network of the family can have.
        """
        made: TaskNetwork = _load(self.builder)(*arguments, **options)
        return made

    def for_brain(
        self, feature_size: int, tasks: Sequence[str], num_anchors: int, patch: int, options: Mapping[str, Any]
    ) -> TaskNetwork:
        """A network for four MR sequences, the three tumour regions and the two grades.

        Args:
            feature_size: width.
            tasks: some of `tasks`.
            num_anchors: at each place of a detection map.
            patch: side of the training patches in voxels, for the attention windows.
            options: arguments of the family's builder that go before all others.

        Raises:
            WrongUse: ``family-dimensions``, ``family-tasks``, or a setting that the family does not have.
        """
        self.check(3, tasks)
        arguments: dict[str, Any] = {"feature_size": feature_size, "tasks": tuple(tasks)}
        if "detection" in self.tasks:
            arguments["num_anchors"] = num_anchors
        if self.sized:
            arguments |= {"spatial_dims": 3, "in_channels": 4, "regions": 3, "labels": 2, "window": patch // 16}
        return self._with_options({**arguments, **self.brain}, options)

    def for_images(
        self,
        feature_size: int,
        tasks: Sequence[str],
        num_anchors: int,
        side: int,
        channels: int,
        regions: int,
        labels: int,
        options: Mapping[str, Any],
    ) -> TaskNetwork:
        """A network for images.

        Args:
            feature_size, tasks, num_anchors, options: as in `for_brain`.
            side: of the images in pixels.
            channels: 3 for colour, 1 for grey.
            regions: channels of the segmentation.
            labels: of the classification.

        Raises:
            WrongUse: as `for_brain`.
        """
        self.check(2, tasks)
        arguments: dict[str, Any] = {"feature_size": feature_size, "tasks": tuple(tasks), "spatial_dims": 2}
        arguments |= {"in_channels": channels, "regions": max(1, regions), "labels": max(1, labels)}
        arguments["window"] = side // 16
        if "detection" in self.tasks:
            arguments["num_anchors"] = num_anchors
        return self._with_options(arguments, options)

    def training_defaults(self, spatial_dims: int) -> dict[str, Any]:
        """Training settings that differ between families, unless a run says otherwise.

        Args:
            spatial_dims: 3 for brain studies, 2 for images.
        """
        return {
            "network_family": self.name,
            "tasks": list(self.tasks),
            "feature_size": self.feature_size if spatial_dims == 3 else self.image_feature_size,
            "balancing": self.balancing,
            "fixed_weights": dict(self.weights),
        }

    def check(self, spatial_dims: int, tasks: Sequence[str]) -> None:
        """Refuse what the family cannot do.

        Raises:
            WrongUse: ``family-dimensions``, ``family-tasks``.
        """
        if spatial_dims not in self.spatial_dims:
            others = ", ".join(each.name for each in FAMILIES if spatial_dims in each.spatial_dims)
            text = f"The family {self.name} is not for images of {spatial_dims} dimensions."
            raise WrongUse("family-dimensions", text, f"Choose one of {others}.")
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown or not tasks:
            text = f"The family {self.name} has no task {', '.join(unknown) or 'to train'}."
            raise WrongUse("family-tasks", text, f"Choose among {', '.join(self.tasks)}, or another family.")

    def make_loss(self, tasks: Sequence[str], anchor_shapes: Sequence[Sequence[float]], **options: Any) -> nn.Module:
        """The losses of some tasks: called with image, output and target, it gives one scalar a task."""
        made: nn.Module = _load(self.loss)(tasks, anchor_shapes, **options)
        return made

    def _with_options(self, arguments: dict[str, Any], options: Mapping[str, Any]) -> TaskNetwork:
        try:
            return self.build(**{**arguments, **options})
        except TypeError as error:
            text = f"A network of the family {self.name} cannot be made: {error}."
            raise WrongUse("network-setting", text, "See docs/families.md for its settings.") from error


FAMILIES: tuple[Family, ...] = (
    Family(
        name="mtmed3d",
        summary="shared Swin encoder; regions, boxes, grade from the regions",
        reference="Li, Iyengar, Xu. MTMed3D. arXiv:2511.12373",
        tasks=TASKS,
        spatial_dims=(3,),
        builder="MTMed3DCore.networks.multitask:build_mtmed3d",
        sized=False,
        loss="MTMed3DCore.training.losses:MultiTaskLoss",
        balancing="gradnorm",
    ),
    Family(
        name="resformer",
        summary="residual and Swin stages with dilated feature enhancement; regions and labels",
        reference="Bui, Le, Bum, Choo, Pham, Han. ResFormer-MTL. Artif Intell Med 2025, 103338; arXiv:2412.00351",
        tasks=("segmentation", "grading"),
        spatial_dims=(2, 3),
        builder="MTMed3DCore.networks.resformer:build_resformer",
        stride=16,
        brain={"norm": "group", "blocks": (2, 2, 2, 2)},
        feature_size=16,
        image_feature_size=64,
        weights={"grading": 0.25},
    ),
    Family(
        name="mtmedformer",
        summary="shared Swin encoder that knows no task; regions, boxes and labels, each from a decoder of its own",
        reference="Nath, Shukla, Gupta. MTMedFormer. Med Biol Eng Comput 2025, doi:10.1007/s11517-025-03404-z",
        tasks=TASKS,
        spatial_dims=(2, 3),
        builder="MTMed3DCore.networks.mtmedformer:build_mtmedformer",
    ),
)
FAMILY_NAMES = tuple(each.name for each in FAMILIES)
DEFAULT_FAMILY = "mtmed3d"
IMAGE_FAMILY = "resformer"
"""Of a list of images, unless another is chosen."""


def find_family(name: str) -> Family:
    """The family of a name.

    Raises:
        WrongUse: ``family-unknown``.
    """
    for each in FAMILIES:
        if each.name == name:
            return each
    text = f"There is no family of networks {name!r}."
    raise WrongUse("family-unknown", text, f"Choose one of {', '.join(FAMILY_NAMES)}.")


def build_network(*arguments: Any, family: str = DEFAULT_FAMILY, **options: Any) -> TaskNetwork:
    """A network with fresh weights, from the arguments that a bundle's ``network_def`` holds.

    Args:
        arguments, options: of the family's builder: `build_mtmed3d`, `build_resformer`, `build_mtmedformer`.
        family: one of `FAMILY_NAMES`; bundles that name none hold an MTMed3D network.

    Raises:
        WrongUse: an unknown family, or a setting that no network of it can have.
    """
    return find_family(family).build(*arguments, **options)


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
