from typing import Any

import pytest
import torch

from fedsa.algorithms import make_algorithm
from fedsa.client.state import personal_tensors
from fedsa.errors import ProtocolError
from fedsa.server import Server, received_by
from fedsa.steps.chain import Chain
from fedsa.steps.client_privacy import NoisyMean
from fedsa.types import Factor, Key, Update

A = Key("layer", Factor.A)


def server_of(clients: int, **options) -> Server:
    algorithm = make_algorithm("fedsa", {})
    names = [f"c{number}" for number in reversed(range(clients))]
    return Server(algorithm, algorithm.init({A: torch.zeros(1)}), names, **{"seed": 0, **options})


def aggregated(values: dict[str, tuple[int, float]], **options) -> float:
    """Return the server's value after a round in which each client sent one, with its number of examples."""
    server = server_of(len(values), **options)
    server.begin_round(1)
    server.end_round(
        1, [Update(client, 1, count, {A: torch.tensor([value])}) for client, (count, value) in values.items()]
    )
    return float(server.state.tensors[A])


def test_weighting():
    values = {"c0": (1, 8.0), "c1": (3, 4.0)}
    assert aggregated(values) == 5.0  # (1·8 + 3·4) / 4
    assert aggregated(values, weighting="uniform") == 6.0  # (8 + 4) / 2


def test_a_sampled_client_may_be_missing():
    server = server_of(3)
    server.begin_round(1)
    record = server.end_round(1, [Update("c1", 1, 7, {A: torch.tensor([2.0])}, {"loss": 1.0})])
    assert record.clients == ("c0", "c1", "c2")
    assert record.finished == ("c1",)
    assert record.upload_bytes == {"c1": 4}
    assert record.train_metrics == {"c1": {"loss": 1.0}}
    assert float(server.state.tensors[A]) == 2.0
    assert server.client_versions == {"c1": 0}


def test_every_client_trains_unless_a_fraction_is_given():
    assert server_of(3).sample(1) == ("c0", "c1", "c2")


def test_a_client_of_a_lower_rank_is_sent_its_own_rows_alone():
    algorithm = make_algorithm("fedsa", {})
    state = algorithm.init({A: torch.zeros(2, 3)})
    server = Server(algorithm, state, ["c0", "c1"], seed=0, ranks={"c1": 1})
    server.begin_round(1)
    values = {"c0": torch.ones(2, 3), "c1": torch.ones(1, 3)}
    server.end_round(1, [Update(client, 1, 1, {A: value}) for client, value in values.items()])
    assert {client: tuple(server.payload(client, 2).tensors[A].shape) for client in values} == {
        "c0": (2, 3),
        "c1": (1, 3),
    }


def test_how_many_are_sampled():
    sizes = {fraction: len(server_of(10, fraction_train=fraction).sample(1)) for fraction in (0.01, 0.25, 0.34, 0.96)}
    assert sizes == {0.01: 1, 0.25: 3, 0.34: 3, 0.96: 10}


def test_who_is_sampled_depends_on_seed_and_round_alone():
    drawn = [server_of(20, fraction_train=0.5).sample(round) for round in range(1, 30)]
    assert drawn == [server_of(20, fraction_train=0.5).sample(round) for round in range(1, 30)]
    assert drawn != [server_of(20, fraction_train=0.5, seed=1).sample(round) for round in range(1, 30)]
    assert len(set(drawn)) > 20
    assert all(list(clients) == sorted(set(clients)) and len(clients) == 10 for clients in drawn)
    assert {client for clients in drawn for client in clients} == set(server_of(20).clients)


def test_a_client_gets_what_it_lacks_and_a_fresh_one_all():
    server = server_of(2, client_versions={"c0": 3})
    server.begin_round(5)
    server.end_round(5, [Update("c0", 5, 1, {A: torch.tensor([2.0])})])
    assert server.client_versions == {"c0": 4}
    assert {client: set(server.payload(client, 6).tensors) for client in server.begin_round(6)} == {
        "c0": {A},
        "c1": {A},
    }
    server.end_round(6, [])
    server.client_versions["c1"] = 6
    assert set(server.payload("c1", 7).tensors) == set()


def test_modules_may_have_ranks_of_their_own():
    """PEFT's rank_pattern: what one module's rank is says nothing of another's."""
    algorithm = make_algorithm("fedit", {})
    small, large = (
        {Key(name, Factor.A): (rank, 3), Key(name, Factor.B): (3, rank)} for name, rank in (("x", 2), ("y", 4))
    )
    initial = {key: torch.zeros(shape) for key, shape in {**small, **large}.items()}
    server = Server(algorithm, algorithm.init(initial), ["a"], seed=0)
    server.begin_round(1)
    server.end_round(1, [Update("a", 1, 5, {key: torch.ones_like(value) for key, value in initial.items()})])
    own = personal_tensors(algorithm, initial, None, received_by(algorithm, server.state, "a", 2))
    assert {key: tuple(value.shape) for key, value in own.items()} == {**small, **large}
    assert all(bool((value == 1).all()) for value in own.values())


@pytest.mark.parametrize(("method", "options"), [("fedit", {}), ("hetlora", {}), ("hetlora", {"decay": 0.5})], ids=str)
def test_a_lower_rank_than_a_client_was_given_is_refused_unless_the_method_cuts_ranks(
    method: str, options: dict[str, Any]
) -> None:
    """A row of A that one client alone sends would be its own: no bound and no noise is made for that."""
    algorithm = make_algorithm(method, options)
    shapes = {Key("x", Factor.A): (2, 3), Key("x", Factor.B): (3, 2)}
    lower = {Key("x", Factor.A): torch.ones(1, 3), Key("x", Factor.B): torch.ones(3, 1)}
    whole = {key: torch.ones(shape) for key, shape in shapes.items()}
    server = Server(algorithm, algorithm.init(whole, {"x": 1.0}), ["a", "b", "c"], seed=0, quorum=1, ranks={"c": 1})
    server.begin_round(1)
    record = server.end_round(1, [Update("a", 1, 1, whole), Update("b", 1, 1, lower), Update("c", 1, 1, lower)])
    if options:
        assert record.finished == ("a", "b", "c")
    else:
        assert record.finished == ("a", "c"), "the third one has a lower rank, as the recipe says"
        assert "has shape (1, 3), not (2, 3)" in record.rejected["b"]


def test_one_clients_lower_rank_does_not_spoil_the_bound_of_the_others() -> None:
    """The mean over k clients, times all n of them, would move a row by n/k times what a client may move it."""
    algorithm, key = make_algorithm("fedit", {}), Key("x", Factor.A)
    state = algorithm.init({key: torch.zeros(2, 1)})
    steps = Chain((NoisyMean(clipping_norm=1.0, noise_multiplier=0.0),))
    server = Server(algorithm, state, ["a", "b", "c"], seed=0, weighting="uniform", quorum=1, steps=steps)
    server.begin_round(1)
    bent = [torch.zeros(1, 1), torch.zeros(1, 1)]
    honest = torch.tensor([[0.0], [1.0]])
    server.end_round(1, [Update(c, 1, 1, {key: value}) for c, value in zip("abc", [*bent, honest], strict=True)])
    assert float(server.state.tensors[key].norm()) == pytest.approx(1 / 3)


def bad(how: str) -> Update:
    value = {"nan": torch.tensor([torch.nan]), "shape": torch.zeros(2), "dtype": torch.zeros(1, dtype=torch.float64)}
    if how == "round":
        return Update("c1", 7, 1, {A: torch.tensor([9.0])})
    if how == "tensor":
        return Update("c1", 1, 1, {A: torch.tensor([9.0]), A._replace(factor=Factor.B): torch.zeros(1)})
    return Update("c1", 1, 1, {A: value[how]})


@pytest.mark.parametrize("how", ["nan", "shape", "dtype", "round", "tensor"])
def test_with_a_quorum_a_bad_update_is_named_and_the_round_goes_on(how: str) -> None:
    good = [Update("c0", 1, 1, {A: torch.tensor([2.0])}), Update("c2", 1, 3, {A: torch.tensor([4.0])})]
    server = server_of(3, quorum=2)
    server.begin_round(1)
    record = server.end_round(1, [good[0], bad(how), good[1]])
    assert record.finished == ("c0", "c2")
    assert list(record.rejected) == ["c1"]
    assert "client 'c1'" in record.rejected["c1"]
    assert float(server.state.tensors[A]) == 3.5, "nothing of the bad one counts"
    assert set(server.client_versions) == {"c0", "c2"}


@pytest.mark.parametrize("how", ["nan", "shape", "dtype", "round", "tensor"])
def test_a_bad_update_can_be_told_before_the_round_ends(how: str) -> None:
    """So a fleet counts good ones only."""
    server = server_of(3, quorum=2)
    server.begin_round(1)
    server.check(Update("c0", 1, 1, {A: torch.tensor([2.0])}), 1)
    with pytest.raises(ProtocolError, match="client 'c1'"):
        server.check(bad(how), 1)
    assert not server.client_versions, "nothing was taken"


def test_below_the_quorum_the_round_fails_and_the_state_is_as_it_was() -> None:
    server = server_of(3, quorum=2)
    before = server.state
    server.begin_round(1)
    with pytest.raises(ProtocolError, match=r"^round 1: 1 good update, the quorum is 2 \(update of client 'c1'"):
        server.end_round(1, [Update("c0", 1, 1, {A: torch.tensor([2.0])}), bad("nan")])
    assert server.state is before


def test_without_a_quorum_a_bad_update_ends_the_round() -> None:
    server = server_of(3)
    server.begin_round(1)
    with pytest.raises(ProtocolError, match="is not finite"):
        server.end_round(1, [Update("c0", 1, 1, {A: torch.tensor([2.0])}), bad("nan")])
