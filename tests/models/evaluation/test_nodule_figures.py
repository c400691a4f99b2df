from models.evaluation.nodule_figures import table


def test_the_most_that_is_found_within_each_limit_of_false_ones_stands_in_the_table() -> None:
    def point(least: float, found: int, false_per_scan: float) -> dict[str, float]:
        return {"least_probability": least, "nodules": 10, "found": found, "false_per_scan": false_per_scan}

    written = table(
        {
            "network": {"sha256": "a" * 64, "present_probability": 0.5},
            "simulation": [point(0.05, 10, 2.5), point(0.1, 9, 1.5), point(0.2, 8, 1.0)],
            "operating_point": {"from_6_mm": point(0.5, 4, 0.25)},
            "by_type": {"ground_glass": {"nodules": 4, "found": 1}, "solid": {"nodules": 0, "found": 0}},
            "diameter_mm": {"n": 4, "bias": 0.2, "standard_deviation": 1.0, "within_2_mm": 0.75},
        }
    )
    rows = [line.split(" | ")[:3] for line in written.splitlines() if line.startswith("| ")]
    assert ["| at most 2 false ones a scan", "0.1", "9 of 10"] in rows
    assert ["| at most 1 false ones a scan", "0.2", "8 of 10"] in rows
    assert ["| described as present", "0.5", "4 of 10"] in rows
    assert not any(row[0] == "| at most 0.5 false ones a scan" for row in rows)
    assert "| solid | 0 of 0 | - |" in written
