"""Tests mirror the rooms; theory/ holds queueing oracles, reference/ the slow simulator that the fast one must equal."""
