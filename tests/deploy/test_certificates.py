"""Keys that are made where they stay, and certificates that are renewed: for whom, with what, and what is refused."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest

from fedsa.deploy import certificates
from fedsa.deploy.authority import Authority
from fedsa.deploy.certificates import add_key, make_request, take_renewed
from fedsa.deploy.preflight import KIT, Kit, PreflightError, check_kit, end_of, read_kit, warning_of
from fedsa.deploy.provision import ADMINISTRATOR, provision
from fedsa.engines.roster import Roster
from fedsa.errors import UserError
from support.extras import NEEDS_NVFLARE

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]

SITES = ["north", "south"]


def test_a_key_that_is_made_at_the_site_never_leaves_it(tmp_path: Path) -> None:
    request = make_request(tmp_path / "north's", "north")
    key = request.with_suffix(".key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    kit = provision(tmp_path, "a_project", "localhost", 8002, ["north"], requests={"north": request})["north"]
    assert not kit.key.exists()
    with pytest.raises(PreflightError, match=r"client\.key is missing"):
        check_kit(kit)
    add_key(kit, key)
    check_kit(kit)
    with pytest.raises(UserError, match="is there already"):
        make_request(tmp_path / "north's", "north")


def test_a_request_of_another_site_is_refused_and_can_be_mended(tmp_path: Path) -> None:
    request = make_request(tmp_path / "requests", "south")
    with pytest.raises(UserError, match=r"south\.csr is not a request for a certificate of north"):
        provision(tmp_path, "a_project", "localhost", 8002, ["north"], requests={"north": request})
    good = make_request(tmp_path / "requests", "north")
    kit = provision(tmp_path, "a_project", "localhost", 8002, ["north"], requests={"north": good})["north"]
    add_key(kit, good.with_suffix(".key"))


def test_a_key_that_does_not_fit_stays_where_it_is(tmp_path: Path) -> None:
    """Else the right one would not be taken any more."""
    request = make_request(tmp_path / "right", "north")
    wrong = make_request(tmp_path / "wrong", "north").with_suffix(".key")
    kit = provision(tmp_path, "a_project", "localhost", 8002, ["north"], requests={"north": request})["north"]
    with pytest.raises(PreflightError, match="not the key of"):
        add_key(kit, wrong)
    assert wrong.exists()
    assert not kit.key.exists()
    add_key(kit, request.with_suffix(".key"))
    check_kit(kit)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Of a federation whose parties have their kits: north's key was made there."""
    request = make_request(tmp_path / "at-north", "north")
    (tmp_path / "all").mkdir()
    made = Authority(tmp_path / "all", "localhost", 8002, 2)
    kits = made.make(SITES, [request])
    made.write()
    places = {"server": kits["server"], "admin": kits[ADMINISTRATOR], **{site: kits[site] for site in SITES}}
    for name, kit in places.items():
        (tmp_path / name).mkdir(exist_ok=True)
        kit.path.rename(tmp_path / name / KIT)
    add_key(read_kit(tmp_path / "north" / KIT), request.with_suffix(".key"))
    return Authority.read(tmp_path / "all")


@pytest.fixture
def roster() -> Roster:
    return Roster.begun("run", SITES, {})


def kits_of(place: Path) -> dict[str, Kit]:
    return {name: read_kit(place / name / KIT) for name in ("server", "admin", *SITES)}


def shake_hands(server: Kit, site: Kit) -> None:
    """A TLS handshake in memory, in which each side checks the other's certificate."""
    one = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    one.verify_mode = ssl.CERT_REQUIRED
    two = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, kit in ((one, server), (two, site)):
        context.load_verify_locations(cafile=str(kit.authority))
        context.load_cert_chain(kit.certificate, kit.key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [two.wrap_bio(back, there, server_hostname="localhost"), one.wrap_bio(there, back, server_side=True)]
    done: set[int] = set()
    for _ in range(10):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                continue
    assert done == {0, 1}


def put(files: dict[str, Path], place: Path, *parties: str) -> None:
    """Bring the files to their parties, which put them into their kits."""
    for party in parties:
        kits = [read_kit(place / name / KIT) for name in (("server", "admin") if party == "server" else (party,))]
        (place / party / files[party].name).write_bytes(files[party].read_bytes())
        assert take_renewed(place / party, party, kits)
        assert not (place / party / files[party].name).exists()
        assert not take_renewed(place / party, party, kits)


def test_expired_certificates_are_renewed_for_the_keys_that_are_there(
    authority: Authority, roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority's own has expired too."""
    keys = {name: kit.key.read_bytes() for name, kit in kits_of(tmp_path).items()}
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_now", lambda: long_ago)
        patch.setattr(certificates, "check_kit", lambda kit: None)
        put(authority.renew(roster, []), tmp_path, "server", *SITES)
    for kit in kits_of(tmp_path).values():
        with pytest.raises(PreflightError, match=r"has expired: it was valid until .*`fedsa deploy renew`"):
            check_kit(kit)
    with pytest.raises(UserError, match="the authority's certificate has expired: first run `fedsa deploy renew"):
        authority.make_one("west")
    files = authority.renew(roster, [])
    assert {*files} == {"server", *SITES}
    assert not any(b"PRIVATE" in path.read_bytes() for path in files.values())
    put(files, tmp_path, "server", *SITES)
    kits = kits_of(tmp_path)
    for name, kit in kits.items():
        check_kit(kit)
        assert kit.key.read_bytes() == keys[name]
    shake_hands(kits["server"], kits["north"])
    west = authority.make_one("west")
    check_kit(west)
    shake_hands(kits["server"], west)
    state = tmp_path / "all" / "authority" / "authority" / "fedsa" / "state" / "cert.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600


def test_parties_with_old_and_new_certificates_understand_each_other(
    authority: Authority, roster: Roster, tmp_path: Path
) -> None:
    before = kits_of(tmp_path)["north"].certificate.read_bytes()
    put(authority.renew(roster, ["north"]), tmp_path, "north")
    kits = kits_of(tmp_path)
    assert kits["north"].certificate.read_bytes() != before
    shake_hands(kits["server"], kits["north"])
    put(authority.renew(roster, ["server"]), tmp_path, "server")
    kits = kits_of(tmp_path)
    shake_hands(kits["server"], kits["south"])
    shake_hands(kits["server"], kits["north"])


def test_files_that_are_not_for_a_party_are_refused(authority: Authority, roster: Roster, tmp_path: Path) -> None:
    north = read_kit(tmp_path / "north" / KIT)
    before = north.certificate.read_bytes()
    files = authority.renew(roster, [])
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "localhost", 8002, 2)
    other.make(SITES)
    stranger = other.renew(roster, ["north"])["north"]
    for content, text in (
        (files["south"].read_bytes(), "is not for the key of north"),
        (stranger.read_bytes(), "is not for the key of north, or of another federation"),
        (b"", "holds no certificates"),
    ):
        (tmp_path / "north" / "north.crt").write_bytes(content)
        with pytest.raises(PreflightError, match=text):
            take_renewed(tmp_path / "north", "north", [north])
        assert north.certificate.read_bytes() == before


def test_a_party_that_there_is_not_or_that_has_left_gets_none(authority: Authority, roster: Roster) -> None:
    with pytest.raises(UserError, match="no party 'noth'; did you mean 'north'"):
        authority.renew(roster, ["noth"])
    gone = roster.without_site("south")
    with pytest.raises(UserError, match="'south' has left the federation"):
        authority.renew(gone, ["south"])
    assert {*authority.renew(gone, [])} == {"server", "north"}


def test_a_certificate_that_ends_soon_is_told(
    authority: Authority, roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    north = read_kit(tmp_path / "north" / KIT)
    assert warning_of(north) == ""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_DAYS", 12.5)
        put(authority.renew(roster, ["north"]), tmp_path, "north")
    assert f"the certificate of north ends on {end_of(north):%Y-%m-%d}, in 12 days" in warning_of(north)
    put(authority.renew(roster, ["north"]), tmp_path, "north")
    assert warning_of(north) == ""


def test_a_request_that_is_none_or_of_nobody_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "x.csr").write_text("x")
    authority = Authority(tmp_path / "all", "localhost", 8002, 2)
    with pytest.raises(UserError, match=r"x\.csr is no request for a certificate"):
        authority.make(SITES, [tmp_path / "x.csr"])
    with pytest.raises(UserError, match=r"noth\.csr is a request of 'noth'; did you mean 'north'"):
        authority.make(SITES, [make_request(tmp_path / "y", "noth")])
    with pytest.raises(UserError, match="has no folder authority"):
        Authority.read(tmp_path)
