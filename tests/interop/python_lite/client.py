"""A program of the pure-Python client: follows a run, and tells which foreign modules were loaded for it.

python client.py ADDRESS INPUT
"""

from __future__ import annotations

import asyncio
import json
import sys

from behest_lite.client import Client


async def main() -> None:
    """Do what is told."""
    address, text = sys.argv[1:]
    async with Client(address) as client:
        output = await client.stream(text).result()
    loaded = {name.partition(".")[0] for name in sys.modules}
    told = {"output": output.text, "foreign": sorted(loaded & {"grpc", "google", "cygrpc"})}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
