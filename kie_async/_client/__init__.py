"""The client path on asyncio: session → submitter → http client → tracker → task. Opens all aiohttp sessions."""
