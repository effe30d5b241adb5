"""What server and sites must hold alike: one value that is written down, compared and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.agreement import Agreement, hash_of_state
from fedsa.client.site import Site
from fedsa.errors import ConfigError, DataError, ModelError, ProtocolError, UserError
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.server import load_state, save_state, server_of
from fedsa.store import RunFolder
from fedsa.store.seals import sealed_table, unsealed_table
from fedsa.types import Side, Update
from support.tiny_rows import write_clients

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def federation(tiny_recipe: Callable[..., Recipe]) -> Federation:
    return Federation.from_recipe(tiny_recipe("training.trainer=sequential"))


@pytest.fixture(scope="module")
def agreement(federation: Federation) -> Agreement:
    return federation.agreement


def changed(agreement: Agreement, **values: Any) -> Agreement:
    """An agreement with other values, made of its text."""
    data = unsealed_table(agreement.text())
    for name, value in values.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    return Agreement.parse(json.dumps(data))


def own_settings(tiny_data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a site whose clients' files are in a folder."""
    return {
        "model": tiny_data["model"],
        "compute": tiny_data["compute"],
        "training": {"trainer": "sequential"},
        "data": {"path": str(folder), "partition": {"kind": "files"}},
    }


def write_client(folder: Path, *rows: tuple[str, str]) -> Path:
    """Write a client's rows: text and label."""
    folder.mkdir()
    lines = [f"{text},{label}" for text, label in rows]
    (folder / "east.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return folder


def test_one_that_is_nested_too_deeply_is_refused(agreement: Agreement) -> None:
    table = unsealed_table(agreement.text())
    for _ in range(400):
        table["settings"] = {"x": table["settings"]}
    with pytest.raises(UserError, match="nested too deeply"):
        Agreement.parse(sealed_table(table))


def test_what_is_written_is_read_back(agreement: Agreement, tmp_path: Path) -> None:
    (tmp_path / "agreement.json").write_text(agreement.text(), encoding="utf-8")
    read = Agreement.read(tmp_path / "agreement.json")
    assert read == agreement
    assert read.fingerprint() == agreement.fingerprint()
    assert read.differences(agreement) == ()
    assert read.recipe.model_dump(include={"algorithm", "rounds", "training", "server"}) == agreement.recipe.model_dump(
        include={"algorithm", "rounds", "training", "server"}
    )


def test_it_has_no_machines_choices_and_no_places(
    agreement: Agreement, federation: Federation, tiny_rows: Path
) -> None:
    text = agreement.text()
    assert str(tiny_rows) not in text
    assert federation.recipe.model.path not in text
    assert not {"compute", "model"} & agreement.settings.keys()
    assert not {"trainer", "cohort_size", "packing"} & agreement.settings["training"].keys()


def test_another_machine_comes_to_the_same_agreement(tiny_recipe: Callable[..., Recipe], agreement: Agreement) -> None:
    other = Federation.from_recipe(tiny_recipe("compute.threads=2", "evaluation.batch_size=7", "keep_rounds=all"))
    assert other.agreement.fingerprint() == agreement.fingerprint()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"labels": ["good", "bad"]}, "labels"),
        ({"metric": "f1"}, "metric"),
        ({"ranks": {"site 1": 1}}, "ranks"),
        ({"settings": {"rounds": 9}}, "rounds"),
        ({"adapter": {"base": "another"}}, "adapter.base"),
        ({"adapter": {"initial": "another"}}, "adapter.initial"),
        ({"adapter": {"scaling": {}}}, "adapter.scaling"),
        ({"adapter": {"config": {"r": 4}}}, "adapter.config.r"),
    ],
)
def test_differences_are_named(agreement: Agreement, values: dict[str, Any], name: str) -> None:
    other = changed(agreement, **values)
    assert name in agreement.differences(other)
    assert other.fingerprint() != agreement.fingerprint()


def test_a_base_of_few_bits_is_not_compared(agreement: Agreement) -> None:
    assert agreement.differences(changed(agreement, adapter={"base": ""})) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "not an agreement of format 1"),
        ('{"format": 2}', "not an agreement of format 1"),
        ('{"format": 1}', "settings: is missing"),
        ('{"format": 1, "adapter": {"tensors": {"layer": {"shape": [2]}}}}', "not a tensor key: 'layer'"),
    ],
)
def test_what_is_no_agreement_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Agreement.read(tmp_path / "file.json")
    with pytest.raises(UserError, match="cannot read the agreement"):
        Agreement.read(tmp_path / "none.json")


def test_a_site_cannot_change_what_was_agreed_upon(agreement: Agreement) -> None:
    own = {"model": {"path": "a"}, "data": {"path": "b", "partition": {"kind": "files"}}, "rounds": 7}
    with pytest.raises(ConfigError, match=r"rounds: is agreed upon as 2 \(got 7\): leave it out"):
        agreement.recipe_with(own)
    assert agreement.recipe_with({**own, "rounds": 2}).model.path == "a"


# -- the server -------------------------------------------------------------------------------------------------------


def test_a_server_starts_from_shapes_and_takes_values_as_they_come(agreement: Agreement, tmp_path: Path) -> None:
    server = server_of(agreement, ["one"], agreement.first_state())
    assert all(tensor.is_meta for tensor in server.state.tensors.values())
    payload = server.begin_round(1)["one"]
    assert payload.tensors == {}
    sent = {
        key: torch.ones(tensor.shape)
        for key, tensor in server.state.tensors.items()
        if agreement.algorithm.plan(key, 1).sent
    }
    server.end_round(1, [Update("one", 1, 3, sent)])
    with RunFolder.create(tmp_path / "run", "").locked() as folder:
        folder.register_clients({"one": {}})
        save_state(folder.server_states, 1, server.state, server.client_versions)
        folder.settle()
        loaded = load_state(folder.server_states, 1, agreement.first_state())
    for key, tensor in loaded.tensors.items():
        assert tensor.is_meta is (key not in sent)
        assert tensor.shape == server.state.tensors[key].shape
        assert loaded.versions[key] == (1 if key in sent else 0)
    assert set(server.payload("one", 2).tensors) == {key for key in sent if agreement.algorithm.plan(key, 2).received}


def test_a_round_without_an_update_cannot_be_the_first(agreement: Agreement) -> None:
    server = server_of(agreement, ["one"], agreement.first_state())
    before = server.state
    server.begin_round(1)
    with pytest.raises(ProtocolError, match="no update came, and the server has no value of"):
        server.end_round(1, [])
    assert server.state is before


def test_values_are_asked_for_where_they_are_needed(agreement: Agreement, federation: Federation) -> None:
    assert not agreement.needs_initial_values
    needing = [
        changed(agreement, settings={"algorithm": "fedsvd", "share_head": True}),
        changed(agreement, ranks={"site 1": 1}),
        changed(agreement, settings={"server": {"optimizer": "fedavgm"}}),
    ]
    for each in needing:
        assert each.needs_initial_values
        with pytest.raises(UserError, match="a site must send them once"):
            each.first_state()
        assert not any(tensor.is_meta for tensor in each.first_state(federation.model.initial).tensors.values())
    other = {key: tensor + 1 for key, tensor in federation.model.initial.items()}
    with pytest.raises(UserError, match="are not those that were agreed upon"):
        needing[0].first_state(other)


def test_what_is_zero_for_all_is_in_no_hash(tiny_recipe: Callable[..., Recipe]) -> None:
    folding = Federation.from_recipe(tiny_recipe("algorithm=fedex", "training.trainer=sequential"))
    initial = folding.model.initial
    assert hash_of_state(initial) == hash_of_state(
        {key: value for key, value in initial.items() if key.factor.side is not Side.BASE}
    )
    state = folding.agreement.first_state()
    folded = [tensor for key, tensor in state.tensors.items() if key.factor.side is Side.BASE]
    assert folded
    assert not any(tensor.any() for tensor in folded)


# -- sites ------------------------------------------------------------------------------------------------------------


def test_sites_alone_cut_their_rows_as_a_simulation_of_all_does(
    tiny_recipe: Callable[..., Recipe], tiny_data: dict[str, Any], tiny_rows: Path, tmp_path: Path
) -> None:
    write_clients(tiny_rows, lambda client: (tmp_path / "all", tmp_path / client))
    whole = Federation.from_recipe(tiny_recipe(f"data={{path='{tmp_path / 'all'}', partition={{kind='files'}}}}"))
    assert len(whole.clients) == 3
    for client in whole.clients:
        site = Federation.of_site(whole.agreement, own_settings(tiny_data, tmp_path / client))
        assert site.clients == (client,)
        for one, two in zip(*(each.rows.partition.clients[client] for each in (whole, site)), strict=True):
            assert whole.rows.table[one.tolist()] == site.rows.table[two.tolist()]
        assert hash_of_state(site.model.initial) == hash_of_state(whole.model.initial)


def test_a_label_that_was_not_agreed_upon_is_refused_by_name(
    agreement: Agreement, tiny_data: dict[str, Any], tmp_path: Path
) -> None:
    rows = [("the film was great", "good"), ("the film was awful", "bad")] * 8
    folder = write_client(tmp_path / "east", *rows, ("the film was fine", "goood"))
    with pytest.raises(DataError, match=r"east\.csv.*'goood'.*did you mean 'good'\?"):
        Federation.of_site(agreement, own_settings(tiny_data, folder))


def test_a_site_may_lack_classes(agreement: Agreement, tiny_data: dict[str, Any], tmp_path: Path) -> None:
    folder = write_client(tmp_path / "east", *[("the film was great today", "good")] * 12)
    site = Federation.of_site(agreement, own_settings(tiny_data, folder))
    assert site.rows.label_names == agreement.labels == ("bad", "good")
    assert set(site.rows.labels.tolist()) == {1}
    with RunFolder.create(tmp_path / "states", "").locked() as folder:
        made = site.site(folder.client_states)
    assert isinstance(made, Site)
    assert list(made.rows) == ["east"]


def test_another_base_model_is_refused(
    agreement: Agreement, tiny_data: dict[str, Any], tiny_model_without_dropout: Path, tmp_path: Path
) -> None:
    folder = write_client(tmp_path / "east", *[("the film was great today", "good")] * 12)
    own = own_settings(tiny_data, folder)
    own["model"] = {"path": str(tiny_model_without_dropout), "attn_implementation": "eager"}
    with pytest.raises(ModelError, match=r"adapter\.base.*take the same model"):
        Federation.of_site(agreement, own)
