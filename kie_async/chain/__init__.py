"""Chains: extend a song step by step until it is long enough."""

from kie_async.chain._plan import ChainOptions, ChainPlan, ChainSource, plan_chain
from kie_async.chain._rules import Chain, ChainStep
from kie_async.chain._run import ChainFiles, ChainRun, ChainSession, DetectPart, run_chain

__all__ = [
    "Chain",
    "ChainFiles",
    "ChainOptions",
    "ChainPlan",
    "ChainRun",
    "ChainSession",
    "ChainSource",
    "ChainStep",
    "DetectPart",
    "plan_chain",
    "run_chain",
]
