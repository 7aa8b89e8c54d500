"""Grafana knows every key of the dashboard, and the names in its provisioning agree."""

import json
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from service.monitoring.dashboard import FILE, encoded

PROVISIONING = FILE.parent.parent / "provisioning"


def without_nulls(value: Any) -> Any:
    """Remove nulls, because the encoder leaves out unset values."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def missing_in(read: Any, written: Any, path: str = "") -> list[str]:
    """Return the parts of a document that are lost when it is written again."""
    if isinstance(read, dict):
        return [
            found
            for key, each in read.items()
            for found in (missing_in(each, written[key], f"{path}.{key}") if key in written else [f"{path}.{key}"])
        ]
    if isinstance(read, list):
        return [found for number, each in enumerate(read) for found in missing_in(each, written[number], f"{path}[]")]
    return [] if read == written else [path]


def test_the_committed_file_is_what_the_code_gives() -> None:
    """The file is up to date; `make generate` writes it."""
    assert FILE.read_text() == encoded()


def test_grafanas_schema_knows_every_key() -> None:
    """Nothing is lost when the document is read into Grafana's types and written again."""
    register_default_plugins()
    document = without_nulls(json.loads(FILE.read_text()))
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(document)))
    assert missing_in(document, again) == []


def test_every_panel_says_what_it_shows() -> None:
    """Each panel has a title, a unit, a description, and distinguishable queries."""
    panels = [panel for panel in json.loads(FILE.read_text())["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert all(references)
        assert len(set(references)) == len(references) > 0


def test_provisioning_names_the_data_source_that_the_dashboard_reads() -> None:
    """The provisioned folder is the one that the compose file mounts."""
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/heed.yml").read_text())["providers"]
    document = json.loads(FILE.read_text())
    used = {panel["datasource"]["uid"] for panel in document["panels"] if panel["type"] != "row"}
    used |= {variable["datasource"]["uid"] for variable in document["templating"]["list"]}
    assert used == {source["uid"]}
    assert source["type"] == "prometheus"
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
