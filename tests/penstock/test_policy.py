"""`penstock policy`: rules by name, policies as files, and what they do to recorded traffic."""

from tests.penstock.command_line import Penstock


def test_rules_are_listed_and_replayed(penstock: Penstock) -> None:
    """The shipped trace; a rule of a name that does not exist is told the names."""
    listed = penstock("policy", "list", "--json")
    assert listed.json["mooncake_algorithm1"] == {"balancingThreshold": 2.0, "mayFetch": True}
    rules = ("--rule", "priced", "--rule", "random")
    ended = penstock("policy", "replay", *rules, "--workers", "2,4", "--limit", "300", "--json")
    assert [(row["rule"], row["setting"]["num_workers"]) for row in ended.json] == [
        ("priced", 2),
        ("priced", 4),
        ("random", 2),
        ("random", 4),
    ]
    assert ended.json[0]["mean_ttft_s"] < ended.json[2]["mean_ttft_s"]
    assert "an endless cache would hold" in ended.err
    table = penstock("policy", "replay", *rules, "--limit", "50").out
    assert table.startswith("rule")
    alone = penstock("policy", "replay", "--rule", "priced: {mayFetch: false}", "--json")
    assert alone.json[0]["fetched_bytes"] == 0
    for wrong in (
        ("--rule", "best"),
        ("--rule", "priced: {fetch: 1}"),
        ("--workers", "0"),
        ("--cache", "3X"),
        ("--cost", "1b"),
    ):
        refused = penstock("policy", "replay", *wrong)
        assert refused.code == 1
        assert wrong[1].split(":")[0] in refused.err
