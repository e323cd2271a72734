"""The federation over Flower 1.41 (https://flower.ai): a server and a client app round the same coordinator and site.

This is the only module that knows Flower's messages. A message to a site holds the model, its precision and the plan; a
reply holds the named tensors of a `SiteUpdate`, counts and mean figures. What goes wrong at a site stays in its log:
Flower would send the text of an exception to the server, and that may name a study.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Iterable
from logging import getLogger
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from MTMed3DCore.datalist import DataList
from MTMed3DCore.errors import MTMed3DError
from MTMed3DCore.federation.coordinator import Absence, Coordinator
from MTMed3DCore.federation.curves import draw_courses
from MTMed3DCore.federation.files import CURVES, PLAN
from MTMed3DCore.federation.measuring import pool
from MTMed3DCore.federation.plan import Plan
from MTMed3DCore.federation.privacy import alias, salt_of
from MTMed3DCore.federation.simulation import GLOBAL
from MTMed3DCore.federation.site import Site
from MTMed3DCore.federation.updates import GlobalState, SiteUpdate, Tensors
from MTMed3DCore.training.examples import ExampleCache

TENSORS, PRECISION, COUNTS, FIGURES, CONFIG, ABOUT = "tensors", "precision", "counts", "figures", "config", "about"
LOOK_EVERY = 2.0
"""Seconds between two looks at which sites are there."""
FAILED_CODE = 2
"""Code of a reply without content; Flower's own for a client app that raised."""
log = getLogger("mtmed3d.federation")


def _arrays(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, tensor.cpu()) for name, tensor in tensors.items()))


def _tensors(content: RecordDict, name: str) -> dict[str, Any]:
    return dict(content[name].to_torch_state_dict()) if name in content else {}


def model_message(state: GlobalState, plan: Plan, *, precision: bool) -> RecordDict:
    """What a site is sent."""
    config = ConfigRecord({"plan": plan.to_json(), "round": state.round})
    sent = {TENSORS: _arrays(state.tensors), CONFIG: config}
    return RecordDict({**sent, PRECISION: _arrays(state.precision)} if precision and state.precision else sent)


def read_model(content: RecordDict) -> GlobalState:
    """The model out of `model_message`."""
    return GlobalState(int(content[CONFIG]["round"]), _tensors(content, TENSORS), _tensors(content, PRECISION))


def update_message(update: SiteUpdate) -> RecordDict:
    """What a site sends."""
    sent: dict[str, Any] = {TENSORS: _arrays(update.tensors), COUNTS: MetricRecord(dict(update.counts))}
    sent |= {FIGURES: MetricRecord(dict(update.figures)), ABOUT: ConfigRecord({"site": update.site})}
    return RecordDict({**sent, PRECISION: _arrays(update.precision)} if update.precision else sent)


def read_update(content: RecordDict) -> SiteUpdate:
    """The update out of `update_message`."""
    counts = {name: int(count) for name, count in content[COUNTS].items()}
    figures = {name: float(value) for name, value in content[FIGURES].items()}
    name = str(content[ABOUT]["site"])
    return SiteUpdate(name, counts, _tensors(content, TENSORS), _tensors(content, PRECISION), figures)


class CoordinatedStrategy(Strategy):
    """Flower's rounds, numbered on from where the coordinator stands.

    Args:
        coordinator: holds the model and writes the checkpoints.
        expected: sites to wait for before the first round.
        patience: seconds to wait for them; then those that are there begin, if they are as many as the plan's fewest.
    """

    def __init__(self, coordinator: Coordinator, expected: int, patience: float) -> None:
        self.coordinator, self.expected, self.patience = coordinator, expected, patience
        self.names: dict[int, str] = {}
        self._asked: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The model to every site that is there."""
        plan = self.coordinator.plan
        wanted = self.expected if server_round == 1 else plan.federation.fewest_sites
        deadline = time.monotonic() + self.patience
        while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
        return self._messages(nodes, "train", precision=plan.federation.prior > 0)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the updates to the coordinator."""
        # Of a site that it lost the server itself says so, in a reply that names the message instead of the site.
        asked = {message.metadata.message_id: message.metadata.dst_node_id for message in self._asked}
        silent = {message.metadata.dst_node_id for message in self._asked}
        taken: list[SiteUpdate | Absence] = []
        for reply in replies:
            node = asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            silent.discard(node)
            taken.append(self._read(reply, node))
        late = f"no reply in {self.coordinator.plan.federation.timeout:g} s"
        taken += [Absence(self._name(node), late) for node in sorted(silent)]
        record = self.coordinator.take(taken)
        self._show_course()
        for site, reason in record["absent"].items():
            log.warning("Round %s goes on without %s: %s", record["round"], site, reason)
        log.info("Round %s joined %s", record["round"], ", ".join(record["sites"]) or "nothing")
        return _arrays(self.coordinator.state.tensors), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The new model to every site that is there, to be measured."""
        if not self.coordinator.plan.federation.measures(self.coordinator.state.round):
            return []
        return self._messages(sorted(grid.get_node_ids()), "evaluate", precision=False)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Note what the sites measured, and all of them together."""
        figures: dict[str, dict[str, float]] = {}
        for reply in replies:
            if not reply.has_error() and FIGURES in reply.content:
                given = {name: float(value) for name, value in reply.content[FIGURES].items()}
                if given:
                    figures[self._name(reply.metadata.src_node_id)] = given
        if figures:
            self.coordinator.note({**figures, GLOBAL: pool(figures.values())})
            self._show_course()
        return None

    def summary(self) -> None:
        """Say what runs."""
        federation = self.coordinator.plan.federation
        log.info("%s, round %s of %s", federation.rule, self.coordinator.state.round + 1, federation.rounds)

    def _messages(self, nodes: list[int], kind: str, *, precision: bool) -> list[Message]:
        content = model_message(self.coordinator.state, self.coordinator.plan, precision=precision)
        self._asked = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
        return self._asked

    def _read(self, reply: Message, node: int) -> SiteUpdate | Absence:
        if reply.has_error():
            return Absence(self._name(node), f"lost: {reply.error.reason}"[:200])
        try:
            update = read_update(reply.content)
        except Exception as error:  # whatever a foreign reply holds, the round goes on
            return Absence(self._name(node), f"refused: its reply cannot be read ({type(error).__name__})")
        self.names[node] = update.site
        return update

    def _name(self, node: int) -> str:
        return self.names.get(node, f"node {node}")

    def _show_course(self) -> None:
        if self.coordinator.folder is not None:
            rule = self.coordinator.plan.federation.rule
            draw_courses({rule: self.coordinator.rounds}, self.coordinator.folder / CURVES)


server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Go on with the federation in the folder that the run names, to its last round."""
    folder = Path(str(context.run_config["folder"]))
    plan = Plan.from_json((folder / PLAN).read_text(encoding="utf-8"))
    coordinator = Coordinator.start(plan, folder, resume=True)
    if not coordinator.finished:
        strategy = CoordinatedStrategy(
            coordinator, int(context.run_config["sites"]), float(context.run_config["patience"])
        )
        strategy.start(
            grid=grid,
            initial_arrays=_arrays(coordinator.state.tensors),
            num_rounds=plan.federation.rounds - coordinator.state.round,
            timeout=plan.federation.timeout,
        )
    coordinator.write_bundle()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train for a round."""

    def work(site: Site, plan: Plan, refused: list[str]) -> RecordDict:
        content = update_message(site.update(read_model(message.content), plan, _tell))
        content[ABOUT]["refused"] = refused
        return content

    return _answer(message, context, work)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model on the site's validation studies."""

    def work(site: Site, plan: Plan, refused: list[str]) -> RecordDict:
        return RecordDict({FIGURES: MetricRecord(dict(site.measure(read_model(message.content), plan)))})

    return _answer(message, context, work)


def _answer(message: Message, context: Context, work: Any) -> Message:
    """The reply, or an error that says nothing but its kind."""
    try:
        own = json.loads(Path(str(context.node_config["site"])).read_text(encoding="utf-8"))
        text = str(message.content[CONFIG]["plan"])
        plan = Plan.from_json(text, device=own["device"], workers=own["workers"])
        cache = ExampleCache(Path(own["cache"]), plan.training.spacing_mm)
        cases = DataList.read(Path(own["list"])).cases
        site, refused = Site.open(own["name"], cases, cache, plan.training)
        salt = salt_of(Path(own["cache"]))
        for case, reason in refused.items():
            log.warning("%s (%s outside this site) cannot be prepared: %s", case, alias(case, salt), reason)
        content = work(site, plan, [alias(case, salt) for case in refused])
    except Exception as error:
        log.exception("This site could not do its part.")
        kind = error.code if isinstance(error, MTMed3DError) else type(error).__name__
        return Message(Error(FAILED_CODE, f"{kind}; see the site's own log"), reply_to=message)
    return Message(content, reply_to=message)


def _tell(stage: str, fraction: float, text: str) -> None:
    log.info("%s", text)
