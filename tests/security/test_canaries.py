"""Every secret of a daemon is a word that occurs nowhere else, and after a hard life it stands nowhere. C138, S9.

What people said and what tools were given stands in the store, which is there for it, and in nothing for operators.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.security.canary_scene import living
from tests.security.leaks import canary, found_under


async def check(home: Path, *, rounds: int) -> None:
    async with living(home) as scene:
        for number in range(rounds):
            async with scene.client() as client:
                await scene.live(client)
                # It dies in the middle, and what it was doing is taken up.
                order = f"{scene.said['prompt']} /delay 200 /words 50"
                left = [await client.run(order, model=f"from_env/{mode}") for mode in ("silent", "good")]
                left.append(await client.run(f"/delay 100 /words {20 + number}", model="scripted/echo"))
                await scene.daemon.kill()
            await scene.daemon.start()
            async with scene.client() as client:
                for run in left:
                    await scene.watch(client.watch(run.run_id))
                await scene.export(client)
            await scene.tend(f"backup{number}")
        heads = "".join(scene.vendor.heads)
        # They were used: what is nowhere was not left out.
        sent = {"env", "header", "headertext", "file", "credential"}
        assert {name for name in sent if scene.secrets[name] not in heads} == set()
        assert any(scene.secrets["collector"] in headers.values() for headers in scene.collector.headers)
        assert scene.secrets["token"] in scene.gossip.tokens
        assert found_under(home / "daemon/data", scene.said) != []
        await scene.daemon.terminate()
    assert scene.spilt() == []
    assert len(scene.told) > 20
    # What was searched is what there is: one word more in the log is found.
    with (home / "daemon/behestd.log").open("a") as log:
        log.write(scene.secrets["env"])
    assert scene.spilt() == ["env as it is in daemon/behestd.log"]


async def test_no_secret_stands_anywhere_after_a_hard_life(tmp_path: Path) -> None:  # C138 S9
    await check(tmp_path, rounds=1)


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_no_secret_stands_anywhere_after_a_hard_and_long_life(tmp_path: Path) -> None:  # C138 S9
    await check(tmp_path, rounds=10)


def test_a_leak_would_be_found_however_it_is_written(tmp_path: Path) -> None:
    word = canary("seeded")
    raw = word.encode()
    spilt = {
        "plain": b"x" + raw + b"x", "hex": raw.hex().upper().encode(), "utf16": word.encode("utf-16-le"),
        **{f"base64-{shift}": base64.b64encode(b"x" * shift + raw + b"more") for shift in range(4)},
    }  # fmt: skip
    for name, data in spilt.items():
        place = tmp_path / name
        place.mkdir()
        (place / "file").write_bytes(os.urandom(64) + data + os.urandom(64))
        assert found_under(place, {"seeded": word}), name
        assert found_under(place, {"other": canary("seeded")}) == []
