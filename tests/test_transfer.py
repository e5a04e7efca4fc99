"""Downloading one file from a server that does what servers do."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_latent_upscale.weights import transfer
from lib_latent_upscale.weights.errors import FetchError
from lib_latent_upscale.weights.transfer import Patience, Stopped, download

from .misbehaving import Asked, Manner, MisbehavingServer, misbehaving_server

ROOT = Path(__file__).resolve().parents[1]
CONTENT = random.Random(0).randbytes(200_000)
OTHER = random.Random(1).randbytes(200_000)
PATIENCE = Patience(connect=1, stall=0.5, attempts=2, pause=0.01)
NO_TAG: dict[str, str | None] = {"ETag": None}


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.pth"


def fetch(url: str, part: Path, sizes: range | None = None, **how: Any) -> None:
    wanted = sizes if sizes is not None else range(len(CONTENT), len(CONTENT) + 1)
    download(url, part, wanted, **{"patience": PATIENCE, **how})


def first_byte(asked: Asked) -> int:
    """The first byte that a request asks for."""
    wanted = asked.headers.get("range")
    return int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0


def after(seconds: float) -> Callable[[], bool]:
    """A `should_stop` that says yes from then on."""
    then = time.monotonic() + seconds
    return lambda: time.monotonic() > then


@pytest.fixture
def seconds() -> Iterator[Callable[[], float]]:
    """Tells the time since the test began."""
    start = time.monotonic()
    yield lambda: time.monotonic() - start


# What goes well


def test_a_file_arrives_whole_with_one_request(server: MisbehavingServer, part: Path) -> None:
    fetch(server.serve("/file", CONTENT), part)
    assert part.read_bytes() == CONTENT
    assert len(server.asked) == 1
    assert "range" not in server.asked[0].headers


def test_no_compression_is_asked_for(server: MisbehavingServer, part: Path) -> None:
    fetch(server.serve("/file", CONTENT), part)
    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_progress_rises_to_the_total(server: MisbehavingServer, part: Path) -> None:
    told: list[tuple[int, int | None]] = []
    url = server.serve("/file", CONTENT, Manner(cut=100_000), Manner())
    fetch(url, part, progress=lambda *amounts: told.append(amounts))
    here = [amount for amount, _ in told]
    assert len(here) > 5
    assert here == sorted(here)
    assert {total for _, total in told} == {len(CONTENT)}
    assert told[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("manner", [Manner(length=-1), Manner(chunked=True)])
def test_a_file_of_untold_length_arrives(
    server: MisbehavingServer, part: Path, manner: Manner
) -> None:
    told: list[tuple[int, int | None]] = []
    fetch(server.serve("/file", CONTENT, manner), part, progress=lambda *now: told.append(now))
    assert part.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), None)


def test_a_redirect_is_followed(server: MisbehavingServer, part: Path) -> None:
    server.serve("/file", CONTENT, Manner(cut=100_000), Manner())
    url = server.serve("/latest", b"", Manner(redirect="/file"))
    fetch(url, part)
    assert part.read_bytes() == CONTENT
    assert first_byte(server.asked_for("/file")[1]) > 0


# Going on from what has arrived


def test_the_rest_of_a_cut_download_is_asked_for(server: MisbehavingServer, part: Path) -> None:
    fetch(server.serve("/file", CONTENT, Manner(cut=100_000), Manner()), part)
    first, second = server.asked
    assert "range" not in first.headers
    assert 80_000 < first_byte(second) <= 100_000
    assert second.headers["if-range"].startswith('"')
    assert part.read_bytes() == CONTENT


def test_a_later_call_goes_on_where_one_stopped(server: MisbehavingServer, part: Path) -> None:
    url = server.serve("/file", CONTENT, Manner(cut=100_000), Manner(status=404), Manner())
    with pytest.raises(FetchError, match="404"):
        fetch(url, part)
    fetch(url, part)
    assert first_byte(server.asked[-1]) == first_byte(server.asked[-2]) > 0
    assert part.read_bytes() == CONTENT


def test_tries_that_bring_something_new_are_not_counted(
    server: MisbehavingServer, part: Path
) -> None:
    fetch(server.serve("/file", CONTENT, Manner(cut=20_000)), part)
    assert part.read_bytes() == CONTENT
    assert len(server.asked) > 5 * PATIENCE.attempts


def test_tries_that_bring_nothing_new_come_to_an_end(server: MisbehavingServer, part: Path) -> None:
    url = server.serve("/file", CONTENT, Manner(cut=100_000, ranges=False))
    with pytest.raises(FetchError, match="broke off"):
        fetch(url, part)
    assert len(server.asked) == 1 + PATIENCE.attempts


def test_without_ranges_a_file_is_loaded_anew(server: MisbehavingServer, part: Path) -> None:
    cut, whole = Manner(cut=100_000, ranges=False), Manner(ranges=False)
    fetch(server.serve("/file", CONTENT, cut, whole), part)
    assert first_byte(server.asked[1]) > 0
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("if_range", [True, False], ids=["knows If-Range", "ignores If-Range"])
def test_two_versions_are_never_mixed(
    server: MisbehavingServer, part: Path, if_range: bool
) -> None:
    changed = Manner(becomes=OTHER, if_range=if_range)
    fetch(server.serve("/file", CONTENT, Manner(cut=100_000), changed, Manner()), part)
    assert first_byte(server.asked[1]) > 0
    assert part.read_bytes() == OTHER


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_nothing_is_resumed_that_cannot_be_told_apart(
    server: MisbehavingServer, part: Path, tag: str | None
) -> None:
    cut = Manner(cut=100_000, headers={"ETag": tag})
    fetch(server.serve("/file", CONTENT, cut, Manner()), part)
    assert [first_byte(asked) for asked in server.asked] == [0, 0]
    assert "if-range" not in server.asked[1].headers
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_the_time_of_the_last_change_tells_versions_apart(
    server: MisbehavingServer, part: Path, tag: str | None
) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    dated: dict[str, str | None] = {"ETag": tag, "Last-Modified": date}
    cut, whole = Manner(cut=100_000, headers=dated), Manner(headers=dated)
    fetch(server.serve("/file", CONTENT, cut, whole), part)
    assert server.asked[1].headers["if-range"] == date
    assert first_byte(server.asked[1]) > 0
    assert part.read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_gone_on_from(
    server: MisbehavingServer, part: Path
) -> None:
    with pytest.raises(FetchError):
        fetch(server.serve("/file", CONTENT, Manner(cut=100_000), Manner(status=404)), part)
    fetch(server.serve("/mirrored", CONTENT), part)
    assert first_byte(server.asked_for("/mirrored")[0]) == 0
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("note", ["", "[]", "{}", "null", "5", '{"url": 3, "validator": []}', "\0"])
def test_a_damaged_note_means_to_start_anew(
    server: MisbehavingServer, part: Path, note: str
) -> None:
    part.write_bytes(b"something")
    part.with_name("file.pth.json").write_text(note)
    fetch(server.serve("/file", CONTENT), part)
    assert part.read_bytes() == CONTENT


def test_a_part_that_is_complete_is_not_loaded_again(server: MisbehavingServer, part: Path) -> None:
    url = server.serve("/file", CONTENT)
    fetch(url, part)
    told: list[tuple[int, int | None]] = []
    fetch(url, part, progress=lambda *now: told.append(now))
    assert first_byte(server.asked[1]) == len(CONTENT)
    assert len(server.asked) == 2
    assert part.read_bytes() == CONTENT
    assert told == [(len(CONTENT), len(CONTENT))]


@pytest.mark.parametrize("sizes", [None, range(1, 10**6)])
def test_a_part_that_is_too_long_is_loaded_anew(
    server: MisbehavingServer, part: Path, sizes: range | None
) -> None:
    url = server.serve("/file", CONTENT)
    fetch(url, part)
    part.write_bytes(CONTENT + b"more")
    fetch(url, part, sizes)
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "said", [f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", "bytes 7-8/9", "bytes 1-2", "all of it"]
)
def test_another_part_than_was_asked_for_is_not_taken(
    server: MisbehavingServer, part: Path, said: str
) -> None:
    manners = Manner(cut=100_000), Manner(content_range=said), Manner()
    fetch(server.serve("/file", CONTENT, *manners), part)
    assert first_byte(server.asked[2]) == 0
    assert part.read_bytes() == CONTENT


def test_a_part_that_was_not_asked_for_is_refused(server: MisbehavingServer, part: Path) -> None:
    part.write_bytes(b"left over, without a note")
    said: dict[str, str | None] = {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"}
    with pytest.raises(FetchError, match="206"):
        fetch(server.serve("/file", CONTENT, Manner(status=206, headers=said)), part)


def test_no_more_than_the_rest_is_taken(server: MisbehavingServer, part: Path) -> None:
    whole = f"bytes 98304-{len(CONTENT) - 1}/{len(CONTENT)}"
    longer = Manner(becomes=CONTENT + bytes(500), content_range=whole, chunked=True)
    tag: dict[str, str | None] = {"ETag": '"one"'}
    manners = Manner(cut=100_000, headers=tag), replace(longer, headers=tag)
    with pytest.raises(FetchError, match="more than"):
        fetch(server.serve("/file", CONTENT, *manners), part, range(1, 10**6))


def test_a_killed_process_leaves_a_part_to_go_on_from(
    server: MisbehavingServer, part: Path
) -> None:
    url = server.serve("/file", CONTENT, Manner(trickle=0.02, block=16384), Manner())
    code = (
        "import sys; from pathlib import Path\n"
        "from lib_latent_upscale.weights.transfer import download\n"
        f"download(sys.argv[1], Path(sys.argv[2]), range({len(CONTENT)}, {len(CONTENT) + 1}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url, str(part)], cwd=ROOT)
    while not (part.exists() and part.stat().st_size > 50_000):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    fetch(url, part)
    assert first_byte(server.asked[1]) > 50_000 - 16384
    assert part.read_bytes() == CONTENT


def test_a_link_in_place_of_the_part_is_not_written_through(
    server: MisbehavingServer, part: Path, tmp_path: Path
) -> None:
    url = server.serve("/file", CONTENT)
    fetch(url, part)
    note = part.with_name("file.pth.json")
    links = {part: tmp_path / "mine", note: tmp_path / "my note"}
    for link, target in links.items():
        link.rename(target)
        link.symlink_to(target)
    (tmp_path / "mine").write_bytes(b"precious")
    said = (tmp_path / "my note").read_bytes()
    fetch(url, part)
    assert part.read_bytes() == CONTENT
    assert not part.is_symlink()
    assert (tmp_path / "mine").read_bytes() == b"precious"
    assert (tmp_path / "my note").read_bytes() == said


# A server that is busy, slow or silent


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: MisbehavingServer, part: Path, status: int) -> None:
    fetch(server.serve("/file", CONTENT, Manner(status=status), Manner()), part)
    assert part.read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_given_up(server: MisbehavingServer, part: Path) -> None:
    with pytest.raises(FetchError, match="500"):
        fetch(server.serve("/file", CONTENT, Manner(status=500)), part)
    assert len(server.asked) == PATIENCE.attempts


def test_the_servers_wish_for_a_pause_is_heeded(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float]
) -> None:
    busy = Manner(status=503, headers={"Retry-After": "1"})
    fetch(server.serve("/file", CONTENT, busy, Manner()), part)
    assert seconds() >= 1
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("wish", ["soon", "-5", "\xb2", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_wish_that_is_no_number_is_no_pause(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float], wish: str
) -> None:
    busy = Manner(status=503, headers={"Retry-After": wish})
    fetch(server.serve("/file", CONTENT, busy, Manner()), part)
    assert seconds() < 1
    assert part.read_bytes() == CONTENT


def test_pauses_grow(server: MisbehavingServer, part: Path, monkeypatch: Any) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(transfer, "_sleep", lambda pause, _: pauses.append(pause))
    patience = Patience(attempts=4, pause=0.5)
    with pytest.raises(FetchError):
        fetch(server.serve("/file", CONTENT, Manner(status=500)), part, patience=patience)
    assert pauses == [0.5, 1, 2]


def test_a_stall_is_tried_again_and_then_told(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float]
) -> None:
    with pytest.raises(FetchError, match="stalled"):
        fetch(server.serve("/file", CONTENT, Manner(stall=100)), part)
    assert len(server.asked) == PATIENCE.attempts
    assert seconds() < 2.5


def test_a_stall_is_gone_on_from(server: MisbehavingServer, part: Path) -> None:
    fetch(server.serve("/file", CONTENT, Manner(stall=100_000), Manner()), part)
    assert first_byte(server.asked[1]) > 80_000
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("chunked", [False, True])
def test_a_trickle_is_a_stall(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float], chunked: bool
) -> None:
    url = server.serve("/file", CONTENT, Manner(trickle=0.05, chunked=chunked))
    with pytest.raises(FetchError, match="stalled"):
        fetch(url, part, should_stop=after(4))
    assert seconds() < 2.5


def test_slow_is_not_stalled(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float]
) -> None:
    slow = Manner(trickle=0.1, block=16384)
    fetch(server.serve("/file", CONTENT, slow), part)
    assert seconds() > 2 * PATIENCE.stall
    assert len(server.asked) == 1
    assert part.read_bytes() == CONTENT


def test_an_answer_that_does_not_begin_is_given_up(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float]
) -> None:
    patience = replace(PATIENCE, connect=0.3)
    with pytest.raises(FetchError, match=r"no answer for 0\.3 s"):
        fetch(server.serve("/file", CONTENT, Manner(delay=5)), part, patience=patience)
    assert len(server.asked) == patience.attempts
    assert seconds() < 2


def test_nobody_at_the_address_is_told(part: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(FetchError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/file", part)


# Stopping


def test_stopping_in_a_stall_takes_no_time_and_keeps_the_part(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float]
) -> None:
    url = server.serve("/file", CONTENT, Manner(stall=100_000), Manner())
    with pytest.raises(Stopped):
        fetch(url, part, patience=Patience(), should_stop=after(0.4))
    assert seconds() < 0.9
    assert part.stat().st_size > 80_000
    fetch(url, part)
    assert first_byte(server.asked[1]) > 80_000
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "manner", [Manner(delay=5), Manner(status=503, headers={"Retry-After": "20"})]
)
def test_stopping_while_waiting_takes_no_time(
    server: MisbehavingServer, part: Path, seconds: Callable[[], float], manner: Manner
) -> None:
    with pytest.raises(Stopped):
        fetch(server.serve("/file", CONTENT, manner), part, should_stop=after(0.3))
    assert seconds() < 0.9


def test_a_stopped_download_asks_nobody(server: MisbehavingServer, part: Path) -> None:
    """Not for long, at least: a request that has begun is left alone."""
    with pytest.raises(Stopped):
        fetch(server.serve("/file", CONTENT), part, should_stop=lambda: True)
    assert not part.exists()


# What is refused


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 451, 204, 304])
def test_a_refusal_is_told_at_once(server: MisbehavingServer, part: Path, status: int) -> None:
    with pytest.raises(FetchError, match=str(status)):
        fetch(server.serve("/file", CONTENT, Manner(status=status)), part)
    assert len(server.asked) == 1
    assert not part.exists()


def test_a_redirect_that_leads_nowhere_is_told(server: MisbehavingServer, part: Path) -> None:
    with pytest.raises(FetchError, match="redirects"):
        fetch(server.serve("/loop", b"", Manner(redirect="/loop")), part)
    assert len(server.asked) < 20


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/file", "file:///etc/hostname", "nowhere"])
def test_what_is_no_web_address_is_refused(
    server: MisbehavingServer, part: Path, address: str
) -> None:
    with pytest.raises(FetchError):
        fetch(address, part)
    with pytest.raises(FetchError):
        fetch(server.serve("/file", b"", Manner(redirect=address)), part)
    assert not part.exists()


def test_another_size_is_refused_before_it_is_loaded(server: MisbehavingServer, part: Path) -> None:
    url = server.serve("/file", CONTENT, Manner(stall=0))  # to wait for the body would be a stall
    with pytest.raises(FetchError, match="200000 bytes"):
        fetch(url, part, range(10, 1000))
    assert not part.exists()


@pytest.mark.parametrize("length", [0, 199_999, 200_001])
def test_the_told_size_must_be_right_to_the_byte(
    server: MisbehavingServer, part: Path, length: int
) -> None:
    with pytest.raises(FetchError, match=f"{length} bytes"):
        fetch(server.serve("/file", CONTENT, Manner(length=length)), part)


def test_a_body_that_ends_early_is_no_file(server: MisbehavingServer, part: Path) -> None:
    short = Manner(body=CONTENT[:-1], length=len(CONTENT), headers=NO_TAG)
    with pytest.raises(FetchError, match="broke off"):
        fetch(server.serve("/file", CONTENT, short), part)


def test_a_body_without_length_that_is_too_short_is_no_file(
    server: MisbehavingServer, part: Path
) -> None:
    short = Manner(body=b"short", length=-1, ranges=False)
    with pytest.raises(FetchError, match="broke off at byte 5 of 200000"):
        fetch(server.serve("/file", CONTENT, short), part)


def test_a_body_without_an_end_is_refused(server: MisbehavingServer, part: Path) -> None:
    endless = Manner(body=bytes(5_000_000), length=-1)
    with pytest.raises(FetchError, match="more than 200000 bytes"):
        fetch(server.serve("/file", CONTENT, endless), part)
    assert part.stat().st_size <= len(CONTENT)


def test_a_web_page_is_called_one_and_leaves_the_part_alone(
    server: MisbehavingServer, part: Path
) -> None:
    page = Manner(headers={"Content-Type": "Text/HTML; charset=utf-8"}, body=b"<html>Log in")
    url = server.serve("/file", CONTENT, Manner(cut=100_000), page, Manner())
    with pytest.raises(FetchError, match="web page"):
        fetch(url, part)
    fetch(url, part)
    assert first_byte(server.asked[2]) > 80_000
    assert part.read_bytes() == CONTENT


def test_compression_is_refused(server: MisbehavingServer, part: Path) -> None:
    with pytest.raises(FetchError, match="compresses"):
        fetch(server.serve("/file", CONTENT, Manner(headers={"Content-Encoding": "gzip"})), part)
    assert not part.exists()


@pytest.mark.parametrize("number", ["\xb2", "9" * 5000, "-1", "200000, 200000", "0x30d40"])
def test_a_length_that_is_no_number_is_none(
    server: MisbehavingServer, part: Path, number: str
) -> None:
    manner = Manner(length=-1, headers={"Content-Length": number})
    with pytest.raises(FetchError):
        fetch(server.serve("/file", CONTENT, Manner(cut=100_000), manner), part, range(1, 2))


@pytest.mark.parametrize(
    ("address", "way", "is_fine"),
    [
        ("https://a/x", ["https://a/x", "https://b/y"], True),
        ("https://a/x", ["https://a/x", "http://b/y", "https://c/z"], False),
        ("https://a/x", ["https://a/x", "http://a/x"], False),
        ("HTTPS://a/x", ["http://a/x"], False),
        ("http://a/x", ["http://a/x", "https://b/y", "http://c/z"], True),
    ],
)
def test_an_encrypted_address_must_not_lead_to_a_plain_one(
    address: str, way: list[str], is_fine: bool
) -> None:
    if is_fine:
        transfer._check_encrypted(address, way)
    else:
        with pytest.raises(FetchError, match="http://"):
            transfer._check_encrypted(address, way)


def test_a_disk_that_is_full_is_no_fault_of_the_server(
    server: MisbehavingServer, part: Path
) -> None:
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
    try:
        with pytest.raises(OSError):
            fetch(server.serve("/file", CONTENT), part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert len(server.asked) == 1


def test_what_is_discarded_leaves_nothing(server: MisbehavingServer, part: Path) -> None:
    fetch(server.serve("/file", CONTENT), part)
    assert json.loads(part.with_name("file.pth.json").read_text())["url"].endswith("/file")
    transfer.discard(part)
    assert list(part.parent.iterdir()) == []


# Whatever happens


@st.composite
def stories(draw: st.DrawFn) -> tuple[bytes, list[Manner]]:
    """A file, and what the server does with it, request after request."""
    versions = [random.Random(seed).randbytes(2000) for seed in range(3)]
    headers = draw(st.sampled_from([{}, {}, NO_TAG, {"ETag": 'W/"weak"'}]))
    manner = st.builds(
        Manner,
        status=st.sampled_from([None, None, None, 500, 503]),
        cut=st.sampled_from([None, 10, 250, 700, 1000, 1500, 1999]),
        ranges=st.sampled_from([True, True, True, False]),
        if_range=st.booleans(),
        chunked=st.booleans(),
        becomes=st.sampled_from([None, None, None, *versions]),
        content_range=st.sampled_from([None, None, None, "bytes 0-9/10"]),
        headers=st.just(headers),
    )
    return versions[0], draw(st.lists(manner, min_size=1, max_size=6))


@pytest.fixture(scope="module")
def one_server() -> Iterator[MisbehavingServer]:
    """One for all stories, which are short: chunks are small."""
    with misbehaving_server() as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_CHUNK", 100)
        yield running


@settings(max_examples=60, deadline=None)
@given(stories())
def test_a_download_that_ends_well_is_the_file(
    one_server: MisbehavingServer, tmp_path_factory: Any, story: tuple[bytes, list[Manner]]
) -> None:
    content, manners = story
    part = tmp_path_factory.mktemp("story") / "part"
    url = one_server.serve(f"/{part.parent.name}", content, *manners)
    sizes = range(len(content), len(content) + 1)
    for _ in range(2):
        try:
            fetch(url, part, sizes, patience=replace(PATIENCE, pause=0.001))
        except FetchError:
            assert not part.exists() or part.stat().st_size <= len(content)
        else:
            # One version whole, though not always the last: of a part that is complete nobody
            # asks for more than that there is nothing to add.
            assert part.read_bytes() in {content, *(one.becomes for one in manners)}
