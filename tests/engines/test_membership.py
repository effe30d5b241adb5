"""Sites that come and go between rounds, and sites that are only measured: who is asked, and how a run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.callbacks import Callback
from fedsa.deploy.preparing import prepare
from fedsa.deploy.site import SiteProgram, open_site
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.membership import Membership, check_only_measured, check_same_scale
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.roster import Roster
from fedsa.errors import ConfigError, ProtocolError, UserError
from fedsa.messages import Message, decode
from fedsa.recipe import Recipe
from fedsa.store import FinishedRun, RunFolder

pytestmark = pytest.mark.run

SETTINGS = (
    "training.trainer=sequential",
    "compute.threads=1",
    "model.attn_implementation=eager",
    "rounds=4",
)
CLIENTS = {"north": ["site 0"], "south": ["site 1"], "west": ["site 2"]}
SHARED = ("algorithm=fedit", "share_head=true")


class CutError(Exception):
    """The server's process has ended here."""


class World(Callback):
    """Three sites in this process; the roster begins with some of them, and changes after a round."""

    def __init__(self, place: Path, recipe: Recipe, begins: Sequence[str], only_measured: Sequence[str] = ()) -> None:
        self.place, self.sites = place, place / "sites"
        prepare(recipe, self.sites, [*CLIENTS])
        self.programs: dict[str, SiteProgram] = {}
        self.agreement = Agreement.read(self.sites / "north" / AGREEMENT)
        run = run_id_of(self.agreement, begins)
        self.roster = Roster.begun(run, begins, {site: CLIENTS[site] for site in begins}, only_measured)
        self.changes: dict[int, Callable[[Roster], Roster]] = {}
        self.heard: list[tuple[str, Message]] = []
        self.answers: list[tuple[str, Message]] = []
        self.states: dict[int, dict[Any, torch.Tensor]] = {}  # the server's, after each round
        self.dismissed: list[str] = []
        self.told: list[str] = []
        self.away: set[str] = set()
        self.cut: Callable[[Message], bool] = lambda message: False
        self.open()

    def open(self) -> None:
        """Start the sites' programs, anew where they were there."""
        for program in self.programs.values():
            program.close()
        self.programs = {site: open_site(self.sites / site) for site in CLIENTS}

    def on_round_end(self, round: int, lines: Any, validation: Any) -> None:
        """Somebody changes the roster."""
        if round > 0:
            self.states[round] = RunFolder.open(self.place / "out").server_states.load_server(round)[0]
        if round in self.changes:
            self.roster = self.changes[round](self.roster)

    def exchange(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            message = decode(data)
            if self.cut(message):
                raise CutError
            if site in self.away:
                assert deadline is not None, "nobody waits without an end for a site that has not joined yet"
                continue
            self.heard.append((site, message))
            answer = self.programs[site].handle(data)
            self.answers.append((site, decode(answer)))
            yield site, answer

    def serve(self, quorum: int | None = None) -> dict[str, Any]:
        with open_server_folder(self.place / "out", self.agreement.recipe).locked() as folder:
            sites = self.roster.sites_of(folder)
            fleet = RemoteFleet(
                self.exchange,
                sites,
                self.roster.run,
                clients=self.roster.clients,
                quorum=quorum,
                tell=self.told.append,
            )
            membership = Membership(
                lambda: self.roster, dismiss=self.dismissed.append, tell=self.told.append, seconds=0.01
            )
            return serve(self.agreement, folder, fleet, engine="a test", callbacks=[self], membership=membership)

    def trained(self, round: int) -> list[str]:
        return [site for site, message in self.heard if message.about.get("do") == "train" and message.round == round]

    def close(self) -> None:
        for program in self.programs.values():
            program.close()


@pytest.fixture
def world(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*settings: str, name: str = "a", **options: Any) -> World:
        (tmp_path / name).mkdir()
        made.append(World(tmp_path / name, tiny_recipe(*SETTINGS, *settings), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def west_joins(roster: Roster) -> Roster:
    return roster.with_site("west", CLIENTS["west"])


def south_leaves(roster: Roster) -> Roster:
    return roster.without_site("south")


def test_a_site_that_joins_gets_the_shared_part_and_begins_its_own_b(world: Callable[..., World]) -> None:
    ours = world(begins=["north", "south"])
    ours.changes[2] = west_joins
    summary = ours.serve()
    assert [ours.trained(round) for round in (1, 2, 3, 4)] == [["north", "south"]] * 2 + [
        ["north", "south", "west"]
    ] * 2
    (first,) = [message for site, message in ours.heard if (site, message.round) == ("west", 3) and message.states]
    before = ours.states[2]
    assert first.states["site 2"]
    assert all(torch.equal(value, before[key]) for key, value in first.states["site 2"].items())
    updates = {
        client: (message.about["updates"][client]["num_examples"], state)
        for _, message in ours.answers
        if message.round == 3 and "updates" in message.about
        for client, state in message.states.items()
    }
    assert {*updates} == {"site 0", "site 1", "site 2"}
    total = sum(count for count, _ in updates.values())
    for key, value in ours.states[3].items():
        mean = sum(count * state[key].double() for count, state in updates.values()) / total
        assert torch.allclose(value.double(), mean, atol=1e-6)
    west = ours.programs["west"]
    start = west.federation.site(west.states).initial("site 2")
    assert all(not value.any() for key, value in start.items() if key.factor.value == "B")
    kept = west.states.load_client("site 2", 4)
    assert kept is not None
    assert any(value.any() for key, value in kept.tensors.items() if key.factor.value == "B")
    entries = RunFolder.open(ours.place / "out").read_json("clients.json")
    assert {client: entry.get("joined") for client, entry in entries.items()} == {
        "site 0": None,
        "site 1": None,
        "site 2": 3,
    }
    assert {*summary["per_client"]} == {"site 0", "site 1", "site 2"}
    assert summary["chosen_round"] >= 3, "figures of before are of other clients"
    lines = map(json.loads, RunFolder.open(ours.place / "out").read_metrics().splitlines())
    assert {line["round"] for line in lines if line["client"] == "site 2"} == {3, 4}
    assert list((ours.sites / "west" / "adapters").glob("*/adapter_model.safetensors"))
    assert FinishedRun.open(ours.sites / "west" / "run").summary["chosen_round"] == summary["chosen_round"]


def test_the_rounds_before_are_those_of_the_others_alone(world: Callable[..., World]) -> None:
    ours, alone = world(begins=["north", "south"]), world(begins=["north", "south"], name="b")
    ours.changes[2] = west_joins
    ours.serve()
    alone.serve()
    for round in (1, 2):
        one, two = ours.states[round], alone.states[round]
        assert all(torch.equal(one[key], value) for key, value in two.items())
    one, two = ours.states[3], alone.states[3]
    assert not all(torch.equal(one[key], value) for key, value in two.items())


@pytest.mark.parametrize("where", ["the first question to the new site", "its first round", "the round after"])
def test_a_run_that_is_cut_off_around_a_change_goes_on_to_the_same_bytes(
    world: Callable[..., World], where: str
) -> None:
    """South leaves and west joins between rounds 2 and 3."""
    whole, ours = world(begins=["north", "south"]), world(begins=["north", "south"], name="b")
    for each in (whole, ours):
        each.changes[2] = lambda roster: south_leaves(west_joins(roster))
    expected = whole.serve()
    asked: list[Message] = []

    def cut(message: Message) -> bool:
        asked.append(message)
        late = [one for one in asked if one.round >= 3 and one.about.get("do") == "train"]
        setups = [one for one in asked if one.kind == "setup"]
        return {
            "the first question to the new site": len(setups) == 3,
            "its first round": len(late) == 2,
            "the round after": len(late) == 3,
        }[where]

    ours.cut = cut
    with pytest.raises(CutError):
        ours.serve()
    ours.cut = lambda message: False
    ours.open()
    summary = ours.serve()
    assert summary["per_client"] == expected["per_client"]
    for round in (3, 4):
        one, two = ours.states[round], whole.states[round]
        assert all(torch.equal(one[key], value) for key, value in two.items())


def test_a_site_that_leaves_is_not_asked_any_more(world: Callable[..., World]) -> None:
    ours = world(begins=["north", "south", "west"])
    ours.changes[2] = south_leaves
    summary = ours.serve()
    assert [ours.trained(round) for round in (2, 3, 4)] == [[*CLIENTS], ["north", "west"], ["north", "west"]]
    assert ours.dismissed == ["south"]
    assert any("south has left: from round 3 on" in line for line in ours.told)
    assert {*summary["per_client"]} == {"site 0", "site 2"}
    assert RunFolder.open(ours.place / "out").read_json("clients.json")["site 1"]["left"] == 3
    assert not [message for site, message in ours.heard if site == "south" and message.kind == "finish"]
    assert ours.serve() == summary


def test_a_site_may_leave_while_the_server_is_down(world: Callable[..., World]) -> None:
    """As where a round waited for it."""
    ours = world(begins=["north", "south", "west"])
    ours.cut = lambda message: message.round == 2 and message.about.get("do") == "train"
    with pytest.raises(CutError):
        ours.serve()
    ours.cut = lambda message: False
    ours.roster = south_leaves(ours.roster)
    ours.open()
    summary = ours.serve()
    assert {*summary["per_client"]} == {"site 0", "site 2"}
    assert RunFolder.open(ours.place / "out").read_json("clients.json")["site 1"]["left"] == 2


def test_who_leaves_after_the_last_round_does_not_take_the_choice_along(world: Callable[..., World]) -> None:
    """No other round can be chosen any more: the others would be tested, and exported, untrained."""
    ours = world(begins=["north", "south", "west"])
    ours.cut = lambda message: message.about.get("split") == "test"
    with pytest.raises(CutError):
        ours.serve()
    ours.cut = lambda message: False
    progress = RunFolder.open(ours.place / "out").progress()
    assert progress is not None
    assert progress.round == 4
    assert progress.chosen_round
    ours.roster = south_leaves(ours.roster)
    ours.open()
    summary = ours.serve()
    assert summary["chosen_round"] == progress.chosen_round
    assert {*summary["per_client"]} == {"site 0", "site 2"}


def test_who_has_left_does_not_come_back_with_an_older_roster(world: Callable[..., World]) -> None:
    ours = world(begins=["north", "south", "west"])
    before = ours.roster
    ours.changes[1], ours.changes[2] = south_leaves, lambda roster: before
    ours.serve()
    assert ours.trained(4) == ["north", "west"]
    run = RunFolder.open(ours.place / "out")
    assert before.left == ()
    assert before.with_left_of(run).left == ("south",), "also when the server is started again"


def test_a_site_that_leaves_before_it_has_come_is_shut_out_too(world: Callable[..., World]) -> None:
    ours = world(begins=["north", "south"])
    ours.away.add("west")
    ours.changes[1] = west_joins
    ours.changes[2] = lambda roster: roster.without_site("west")
    ours.serve()
    assert ours.dismissed == ["west"]


def test_nobody_waits_for_the_update_of_a_client_that_has_left(world: Callable[..., World]) -> None:
    """Where rounds overlap, it may still train while its site leaves."""
    ours = world(begins=["north", "south", "west"])
    ours.serve()
    ours.roster = south_leaves(ours.roster)
    with open_server_folder(ours.place / "out", ours.agreement.recipe).locked() as folder:
        fleet = RemoteFleet(ours.exchange, [*CLIENTS], ours.roster.run, clients=CLIENTS)
        fleet.set_up(ours.agreement)
        progress = folder.progress()
        assert progress is not None
        progress.underway = {"site 0": 3, "site 1": 3}
        assert Membership(lambda: ours.roster).follow(ours.agreement, folder, fleet, progress)
        assert progress.underway == {"site 0": 3}


def test_a_site_that_is_not_ready_holds_nobody_up(world: Callable[..., World]) -> None:
    ours = world(begins=["north", "south"])
    ours.changes[1] = west_joins
    ours.away = {"west"}
    come = ours.on_round_end

    def on_round_end(round: int, lines: Any, validation: Any) -> None:
        come(round, lines, validation)
        if round == 3:
            ours.away = set()

    ours.on_round_end = on_round_end  # type: ignore[method-assign]
    ours.serve()
    assert [ours.trained(round) for round in (2, 3, 4)] == [["north", "south"]] * 2 + [[*CLIENTS]]


def test_a_site_that_refuses_to_join_or_has_other_clients_holds_nobody_up(world: Callable[..., World]) -> None:
    ours = world(begins=["north", "south"])
    ours.changes[1] = lambda roster: roster.with_site("west", ["somebody else"])
    assert {*ours.serve()["per_client"]} == {"site 0", "site 1"}
    assert any("west cannot join: site 'west' has the clients site 2; on the roster are" in line for line in ours.told)


def test_a_roster_that_cannot_be_used_leaves_all_as_it_was(world: Callable[..., World]) -> None:
    ours = world(begins=["north", "south"])
    ours.changes[1] = lambda roster: roster.model_copy(update={"run": "another"})
    ours.changes[3] = lambda roster: roster.model_copy(update={"sites": {}})
    assert {*ours.serve()["per_client"]} == {"site 0", "site 1"}
    assert len([line for line in ours.told if "the roster stays as it was: the roster is of another" in line]) == 1


@pytest.mark.parametrize("method", ["fedit", "fedalt", "clustered", "flora", "ffa"])
def test_sites_come_and_go_with_other_methods(world: Callable[..., World], method: str) -> None:
    ours = world(f"algorithm={method}", begins=["north", "south"])
    ours.changes[1], ours.changes[2] = west_joins, south_leaves
    assert {*ours.serve()["per_client"]} == {"site 0", "site 2"}


def test_a_site_that_is_only_measured_never_trains(world: Callable[..., World]) -> None:
    ours = world(*SHARED, begins=[*CLIENTS], only_measured=["west"])
    check_only_measured(ours.agreement)
    summary = ours.serve()
    assert [ours.trained(round) for round in (1, 2, 3, 4)] == [["north", "south"]] * 4
    assert {*summary["per_client"]} == {"site 0", "site 1", "site 2"}
    lines = [json.loads(line) for line in RunFolder.open(ours.place / "out").read_metrics().splitlines()]
    mine = [line for line in lines if line["client"] == "site 2"]
    assert [line["round"] for line in mine] == [0, 1, 2, 3, 4]
    assert all(line["train"] is None and line["validation"] for line in mine)
    assert mine[0]["validation"]["loss"] != mine[-1]["validation"]["loss"], "it has the others' progress"


def test_a_site_that_is_only_measured_refuses_to_train(world: Callable[..., World]) -> None:
    from fedsa.deploy.own_rows import Names

    ours = world(*SHARED, begins=[*CLIENTS])
    Names("west", ("site 2",), trains=False).write(ours.sites / "west")
    with pytest.raises(ProtocolError, match="west: it refuses: this site is only measured: it does not train"):
        ours.serve()


def test_what_stays_at_clients_cannot_be_measured_where_nobody_trains_it(tiny_recipe: Callable[..., Recipe]) -> None:
    from fedsa.federation import agree

    def agreed(*settings: str) -> Agreement:
        return agree(tiny_recipe(*SETTINGS, 'task.labels=["bad","good"]', *settings), ["a", "b"])

    with pytest.raises(ConfigError, match=r"with fedsa, B stays at the client .*nothing could be measured"):
        check_only_measured(agreed())
    check_only_measured(agreed('personal_state="reconstruct"', "reconstruction.steps=1"))
    check_same_scale(agreed(), 2, 9)
    with pytest.raises(ConfigError, match=r"the scale of sfed is that of 2 clients"):
        check_same_scale(agreed("algorithm=sfed"), 2, 3)


def test_a_roster_grows_and_shrinks(tmp_path: Path) -> None:
    roster = Roster.begun("run", ["north", "south"], {"north": ["ward-a", "ward-b"]})
    more = roster.with_site("west", ["w"], trains=False)
    assert more.clients == {"north": ("ward-a", "ward-b"), "south": ("south",), "west": ("w",)}
    assert more.only_measured == {"w"}
    less = more.without_site("south")
    assert (less.left, {*less.clients}) == (("south",), {"north", "west"})
    less.write(tmp_path)
    assert Roster.read(tmp_path) == less
    for make, text in (
        (lambda: less.with_site("south", ["x"]), "a site 'south' already .*it has left"),
        (lambda: less.with_site("east", ["ward-a"]), "'ward-a' is named twice"),
        (lambda: less.with_site("east", ["south"]), "'south' is named twice"),
        (lambda: less.with_site("server", ["x"]), "none server"),
        (lambda: less.without_site("noth"), "did you mean 'north'"),
        (lambda: less.without_site("north"), "no site is left that trains"),
        (lambda: Roster.begun("run", ["a"], {}, ["a"]), "no site trains"),
        (lambda: Roster.begun("run", ["a", "b"], {}, ["c"]), "'c' is to be measured only"),
    ):
        with pytest.raises(UserError, match=text):
            make()


def test_a_client_that_was_not_measured_does_not_count_with_an_old_score(world: Callable[..., World]) -> None:
    """A round is chosen by those alone who were measured after it: else the choice would depend on interruptions."""
    ours = world(begins=["north", "south"])
    told: dict[int, float] = {}
    end = ours.on_round_end

    def on_round_end(round: int, lines: Any, validation: Any) -> None:
        told[round] = validation["weighted_mean"]
        (measured,) = {line["validation"]["accuracy"] for line in lines if line["client"] == "site 0"}
        if round == 2:
            assert [line["client"] for line in lines if "validation" in line] == ["site 0"]
            assert validation["weighted_mean"] == measured
        end(round, lines, validation)

    ours.on_round_end = on_round_end  # type: ignore[method-assign]
    carry = ours.exchange

    def without_south(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in carry(requests, deadline):
            message = decode(requests[site])
            if not (site == "south" and message.about.get("split") == "validation" and message.round == 3):
                yield site, data

    ours.exchange = without_south  # type: ignore[method-assign]
    ours.serve(quorum=1)
    assert 2 in told
