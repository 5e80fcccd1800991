"""The example tool server, as a process."""

from __future__ import annotations

import json
from pathlib import Path

from behestd.tools.schema import Validators
from tests.tools.calls import call, dialled, nowhere, process


async def test_the_example_serves_search_and_count_over_files(tmp_path: Path) -> None:  # C024
    (tmp_path / "a.md").write_text("one apple\ntwo pears\n")
    (tmp_path / "b.txt").write_text("no fruit\n")
    (tmp_path / "c.md").symlink_to("/etc/hostname")
    async with process("example_tools.py", str(tmp_path)) as (address, _), dialled(address) as remote:
        tools = {tool.name: tool for tool in await remote.list_tools()}
        assert sorted(tools) == ["count", "search"]
        for tool in tools.values():
            Validators().check_tool(tool)
        found = await remote.bind(tools["search"]).call(call(arguments_json='{"pattern": "p+l"}'), nowhere)
        assert json.loads(found.structured_json) == [{"file": "a.md", "line": 1, "text": "one apple"}]
        for what, number in (("files", "2"), ("lines", "3"), ("words", "6")):
            made = call(key=what, arguments_json=json.dumps({"what": what}))
            assert (await remote.bind(tools["count"]).call(made, nowhere)).structured_json == number
        wrong = await remote.bind(tools["search"]).call(call(key="w", arguments_json='{"pattern": "("}'), nowhere)
        assert wrong.is_error
