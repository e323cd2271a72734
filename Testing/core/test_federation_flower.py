"""The way over Flower: who may reach what, what is refused, and that messages carry updates unchanged."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
import torch

from MTMed3DCore import cli
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.federation.coordinator import Coordinator
from MTMed3DCore.federation.flower_processes import APP, Server, _over, check_flower, quiet_environment
from MTMed3DCore.federation.flower_superlink import LocalAdministration
from MTMed3DCore.federation.plan import OWN, Plan
from MTMed3DCore.federation.settings import FederationSettings
from MTMed3DCore.federation.updates import GlobalState, SiteUpdate
from Testing.training_runs import SMALL


def ask(path: str, client: str, server: str = "10.0.0.1") -> int:
    """The status of a request that comes from a machine."""
    statuses: list[int] = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "path": path, "client": (client, 5), "server": (server, 8000)}
    asyncio.run(LocalAdministration(app)(scope, None, send))
    return statuses[0]


def test_other_machines_reach_what_a_site_needs_and_nothing_else() -> None:
    """Without this, whoever reaches the port could register a key and start a run, which is code for every site."""
    assert ask("/v1/fleet/activate-node", "192.168.3.4") == 200
    for path in (
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/pull-task-input",
        "/v1/fleetx",
        "/",
    ):
        assert ask(path, "192.168.3.4") == 403
        assert ask(path, "127.0.0.1") == ask(path, "::1") == ask(path, "10.0.0.1") == 200


def test_a_server_that_others_reach_needs_a_certificate_and_registered_keys(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("c", "k", "a", "site.pub")]
    for file in files:
        file.touch()
    Server("127.0.0.1", 8000).check()
    Server("0.0.0.0", 8000, *files[:3], (files[3],)).check()
    with pytest.raises(WrongUse, match="no certificate"):
        Server("0.0.0.0", 8000).check()
    with pytest.raises(WrongUse, match="belong together"):
        Server("127.0.0.1", 8000, files[0]).check()
    with pytest.raises(WrongUse, match="anybody could join"):
        Server("0.0.0.0", 8000, *files[:3]).check()
    with pytest.raises(InputRefused, match="is not there"):
        Server("0.0.0.0", 8000, *files[:3], (tmp_path / "none.pub",)).check()


def test_nothing_phones_home_and_no_dependency_is_installed_at_run_time(tmp_path: Path) -> None:
    environment = quiet_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert "dependencies = []" in APP["pyproject.toml"]


def test_a_run_is_over_when_flower_says_so_and_not_when_it_is_too_busy_to_answer() -> None:
    running, done = {"status": "running"}, {"status": "finished:completed"}
    assert _over(json.dumps({"success": True, "runs": [done, done]}))
    assert not _over(json.dumps({"success": True, "runs": [done, running]}))
    assert not _over(json.dumps({"success": False, "error-message": "Connection to the SuperLink is unavailable."}))


def test_a_plan_tells_a_site_everything_but_what_is_its_own() -> None:
    plan = Plan.make(FederationSettings(rule="bayes", damping=math.inf, rounds=3, local_steps=5), SMALL)
    text = plan.to_json()
    assert not set(OWN) & set(json.loads(text)["training"])
    again = Plan.from_json(text, device="cuda", workers=3)
    assert (again.federation, again.anchor_shapes) == (plan.federation, plan.anchor_shapes)
    assert (again.training.device, again.training.workers, again.training.steps) == ("cuda", 3, 15)
    with pytest.raises(WrongUse, match="cannot be read"):
        Plan.from_json("{}")


def test_the_commands_refuse_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["federate", "simulate", str(tmp_path / "none.json"), "-o", str(tmp_path / "x"), "--sites", "2"])
    assert code == 3
    try:
        check_flower()
    except WrongUse:
        assert cli.main(["federate", "serve", "-o", str(tmp_path / "y")]) == 2
        assert "This needs Flower 1.41" in capsys.readouterr().err
    else:
        assert cli.main(["federate", "serve", "-o", str(tmp_path / "y"), "--address", "0.0.0.0:8000"]) == 2
        assert "there is no certificate" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_a_certificate_names_the_server_and_a_site_key_is_made_once_and_private(tmp_path: Path) -> None:
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography comes with the extra `federation`")
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    from MTMed3DCore.federation.credentials import make_certificate, make_site_key

    make_certificate(tmp_path, "fl.example.org")
    authority, server = (
        x509.load_pem_x509_certificate((tmp_path / f"{n}.crt").read_bytes()) for n in ("authority", "server")
    )
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    public = make_site_key(tmp_path / "site.key")
    before = (tmp_path / "site.key").read_bytes()
    assert make_site_key(tmp_path / "site.key") == public
    assert (tmp_path / "site.key").read_bytes() == before
    assert load_ssh_public_key(public.read_bytes()).curve.name == "secp384r1"
    assert [(tmp_path / name).stat().st_mode & 0o077 for name in ("site.key", "server.key")] == [0, 0]


@pytest.fixture
def flower_app():
    pytest.importorskip("flwr", reason="Flower is the extra `federation`, in an environment of its own")
    from flwr.supercore.task_identity import TaskIdentity

    from MTMed3DCore.federation import flower_app

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return flower_app


def test_messages_carry_models_and_updates_unchanged(flower_app) -> None:
    state = GlobalState(3, {"encoder.w": torch.randn(3, 2), "index": torch.arange(4)}, {"encoder.w": torch.rand(3, 2)})
    plan = Plan.make(FederationSettings(rule="bayes", prior=1.0), SMALL)
    for precision in (True, False):
        read = flower_app.read_model(flower_app.model_message(state, plan, precision=precision))
        assert read.round == 3
        assert all(torch.equal(read.tensors[name], state.tensors[name]) for name in state.tensors)
        assert set(read.precision) == ({"encoder.w"} if precision else set())
    update = SiteUpdate(
        "north", {"studies": 4, "grading": 2}, {"encoder.w": torch.randn(3, 2)}, {}, {"loss_grading": 0.5}
    )
    read = flower_app.read_update(flower_app.update_message(update))
    assert (read.site, read.counts, read.figures) == ("north", {"studies": 4, "grading": 2}, {"loss_grading": 0.5})
    assert torch.equal(read.tensors["encoder.w"], update.tensors["encoder.w"])


def test_the_strategy_names_sites_that_are_lost_silent_or_send_rubbish_and_goes_on(flower_app, tmp_path: Path) -> None:
    from flwr.app import Error, Message, RecordDict

    plan = Plan.make(FederationSettings(rounds=1, timeout=5.0), SMALL)
    state = GlobalState(0, {"encoder.w": torch.zeros(3)})
    coordinator = Coordinator(plan, tmp_path, state)
    strategy = flower_app.CoordinatedStrategy(coordinator, expected=4, patience=0.0)

    class Sites:
        def get_node_ids(self) -> list[int]:
            return [11, 12, 13, 14]

    asked = list(strategy.configure_train(1, None, None, Sites()))
    assert [message.metadata.dst_node_id for message in asked] == [11, 12, 13, 14]
    for number, message in enumerate(asked):
        message.metadata.__dict__["_message_id"] = f"message {number}"  # as pushing it does
    good = SiteUpdate("north", {"studies": 4}, {"encoder.w": torch.ones(3)})

    def reply(index: int, content, source: int | None = None) -> Message:
        made = Message(content, reply_to=asked[index])
        made.metadata.__dict__["_src_node_id"] = 11 + index if source is None else source
        return made

    replies = [
        reply(0, flower_app.update_message(good)),
        reply(1, Error(5, "unavailable"), source=1),
        reply(2, RecordDict()),
    ]
    strategy.aggregate_train(1, replies)
    (record,) = coordinator.rounds
    assert set(record["sites"]) == {"north"}
    assert record["absent"] == {
        "node 12": "lost: unavailable",
        "node 13": "refused: its reply cannot be read (KeyError)",
        "node 14": "no reply in 5 s",
    }
    assert coordinator.state.tensors["encoder.w"].tolist() == [1.0, 1.0, 1.0]


def test_what_goes_wrong_at_a_site_is_told_to_the_server_without_its_text(flower_app, tmp_path: Path) -> None:
    from flwr.app import Context, Message, RecordDict

    plan = Plan.make(FederationSettings(), SMALL)
    content = flower_app.model_message(GlobalState(0, {"encoder.w": torch.zeros(3)}), plan, precision=False)
    own = {
        "name": "north",
        "list": str(tmp_path / "Mueller.json"),
        "cache": str(tmp_path),
        "device": "cpu",
        "workers": 0,
    }
    (tmp_path / "site.json").write_text(json.dumps(own))
    context = Context(1, 11, {"site": str(tmp_path / "site.json")}, RecordDict(), {})
    answer = flower_app.client_app(Message(content, dst_node_id=11, message_type="train"), context)
    assert answer.has_error()
    assert answer.error.reason == "list-damaged; see the site's own log"
