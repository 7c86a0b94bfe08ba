"""The chart: Helm takes it, Kubernetes' schemas take what it makes, ctxpipe takes its configuration and arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from deploy.local.helm import helm_program, schemas
from pipeline.cli import cli
from pipeline.core.canary import canary_specs, context_name
from pipeline.core.config import Config, load, load_contexts
from pipeline.core.metrics import DEFINITIONS
from schemas.topics import consumer_group, dirty_topic, table_topic
from tests.support.charts import CHART, KUBERNETES, VALUES, Refused, helm, mistakes, named, pods, rendered

pytestmark = [pytest.mark.timeout(1800)]  # the first run builds Helm

ROOT = CHART.parents[2]
MINIMAL, EVERYTHING = VALUES / "minimal-values.yaml", VALUES / "everything-values.yaml"
FILES = (MINIMAL, EVERYTHING)
ROLES = ("connect", "worker", "serve", "collector", "canary")
PROBES = {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
Objects = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """Built and fetched where they are missing; a failure says why."""
    helm_program(print)
    schemas(print)


@cache
def objects_of(values: Path, *words: str) -> Objects:
    return rendered("-f", str(values), *words)


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def objects(request: pytest.FixtureRequest) -> Objects:
    return objects_of(request.param)


@pytest.fixture
def everything() -> Objects:
    return objects_of(EVERYTHING)


@pytest.mark.parametrize("words", [(), *(("-f", str(path)) for path in FILES)], ids=["defaults", "minimal", "all"])
def test_helm_finds_nothing_to_complain_of(words: tuple[str, ...]) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *words)


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_every_object_is_what_its_schema_says(objects: Objects, kubernetes: str) -> None:
    wrong = {f"{one['kind']} {one['metadata']['name']}": mistakes(one, kubernetes) for one in objects}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_schemas_would_find_mistakes(everything: Objects) -> None:
    for kind in ("StatefulSet", "Deployment", "NetworkPolicy", "ScaledObject", "ServiceMonitor", "PrometheusRule"):
        one = next(one for one in everything if one["kind"] == kind)
        assert mistakes({**one, "spec": {**one["spec"], "nonsense": 1}}, KUBERNETES[-1]), kind


def test_each_role_has_its_objects(everything: Objects) -> None:
    kinds = {(one["kind"], one["metadata"]["name"].removeprefix("live-ctxpipe-")) for one in everything}
    assert kinds >= {
        ("Deployment", "connect-shop"),
        ("Deployment", "connect-ware-house"),
        ("StatefulSet", "worker-customer"),
        ("StatefulSet", "worker-texts"),
        ("StatefulSet", "serve"),
        ("Deployment", "collector"),
        ("Deployment", "canary"),
        ("HorizontalPodAutoscaler", "serve"),
        ("ScaledObject", "worker-customer"),
        ("PodDisruptionBudget", "serve"),
        ("PodDisruptionBudget", "worker-customer"),
        ("PodDisruptionBudget", "worker-texts"),
        ("ServiceMonitor", "roles"),
        ("ServiceMonitor", "serve"),
    }
    names = [(one["kind"], one["metadata"]["name"]) for one in everything]
    assert len(names) == len(set(names))


def test_every_pod_is_restricted(objects: Objects) -> None:
    """As the Pod Security Standard `restricted` asks, and a read-only root file system."""
    for name, pod in pods(objects):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPath" in volume for volume in spec["volumes"])
        assert "command" not in container, "the image's entrypoint needs no shell"


def test_memory_is_asked_for_and_limited_alike_and_the_processor_is_not_limited(objects: Objects) -> None:
    for name, pod in pods(objects):
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources["limits"] == {"memory": resources["requests"]["memory"]}, name
        assert resources["requests"]["cpu"]


def test_every_pod_is_probed_and_has_the_time_to_end(objects: Objects) -> None:
    for name, pod in pods(objects):
        if name.endswith("-check"):
            continue
        (container,) = pod["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe, path in PROBES.items():
            first_reading = container["name"] == "connect" and probe == "startupProbe"  # which nothing may end
            assert container[probe]["httpGet"]["path"] == ("/livez" if first_reading else path), name
            assert container[probe]["httpGet"]["port"] in ports
        pause_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        running = config_file(objects)["running"]
        end_s = pause_s + running["drain_s"] + running.get("pause_s", 0)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= end_s + 10, name
        assert (pause_s > 0) == (container["name"] == "serve")


def test_selectors_find_their_pods_and_only_these(objects: Objects) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects)}
    owners = {name for name in labels if not name.endswith("-check")}
    for one in objects:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert chosen(spec["selector"]["matchLabels"], labels) & owners == {name}
            if one["kind"] == "StatefulSet":
                assert named(objects, "Service", spec["serviceName"])["spec"]["clusterIP"] == "None"
        elif one["kind"] == "Service":
            found = chosen(spec["selector"], labels)
            assert len(found) == 1, name
            ports = ports_of(objects, found.pop())
            assert {port["targetPort"] for port in spec["ports"]} <= ports, name
        elif one["kind"] == "PodDisruptionBudget":
            assert chosen(spec["selector"]["matchLabels"], labels) & owners == {name}
            assert spec["maxUnavailable"] == 1


def test_what_the_autoscalers_decide_is_said_nowhere_else(everything: Objects) -> None:
    scaled = [one for one in everything if one["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
    assert len(scaled) == 2
    for one in scaled:
        target = one["spec"]["scaleTargetRef"]
        assert "replicas" not in named(everything, target["kind"], target["name"])["spec"]
    assert named(everything, "StatefulSet", "live-ctxpipe-worker-texts")["spec"]["replicas"] == 1
    plain = objects_of(MINIMAL)
    assert named(plain, "StatefulSet", "live-ctxpipe-serve")["spec"]["replicas"] == 2
    scaler = named(everything, "HorizontalPodAutoscaler", "live-ctxpipe-serve")["spec"]
    assert [metric["type"] for metric in scaler["metrics"]] == ["Resource", "Pods"]
    in_flight = scaler["metrics"][1]["pods"]
    assert in_flight["metric"]["name"] in {definition.name for definition in DEFINITIONS}
    assert in_flight["target"] == {"type": "AverageValue", "averageValue": "48"}


def test_workers_scale_by_the_lag_of_the_groups_and_topics_that_they_read(everything: Objects) -> None:
    spec = named(everything, "ScaledObject", "live-ctxpipe-worker-customer")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 8), "16 partitions, two processes a pod"
    asked = {(one["metadata"]["consumerGroup"], one["metadata"]["topic"]) for one in spec["triggers"]}
    customer, canary = consumer_group("customer", 3), consumer_group(context_name("shop"), 1)
    assert asked == {
        (customer, table_topic("shop", "public.customers")),
        (customer, table_topic("shop", "public.orders")),
        (customer, dirty_topic("customer", 3)),
        (canary, table_topic("shop", "public.ctxpipe_canary")),
        (canary, dirty_topic(context_name("shop"), 1)),
    }
    for trigger in spec["triggers"]:
        assert trigger["metadata"]["lagThreshold"] == "40000"
        assert trigger["metadata"]["limitToPartitionsWithLag"] == trigger["metadata"]["excludePersistentLag"] == "true"
        assert trigger["authenticationRef"] == {"name": "kafka-login"}


def test_ctxpipe_takes_the_configuration(objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = loaded(objects, tmp_path, monkeypatch)
    assert config.serve.host == config.collector.host == config.running.metrics_host == "0.0.0.0"
    assert config.data_directory == Path("/data")
    assert config.access.configured
    assert config.running.drain_s == 25
    contexts = load_contexts(config)
    if config.canary is not None:
        assert set(contexts) >= {"customer", *(spec.context for spec in canary_specs(config.canary, config.sources))}


def test_pages_and_replicas_that_others_ask_have_names_that_exist(
    everything: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loaded(everything, tmp_path, monkeypatch)
    assert config.canary is not None
    assert len(config.canary.url) == 3, "as many as there always are"
    assert len(config.collector.scrape) == 3 + 2 + 1 + 2
    assert config.collector.url is not None
    for address in (*config.canary.url, *config.collector.scrape, config.collector.url):
        host, port = re.fullmatch(r"http://([^/:]+):(\d+)(?:/metrics)?", address).groups()  # type: ignore[union-attr]
        service = named(everything, "Service", host.rpartition(".")[2])["spec"]
        assert int(port) in {one["port"] for one in service["ports"]}
        if "." in host:
            pod, _, name = host.partition(".")
            assert named(everything, "StatefulSet", pod.rpartition("-")[0])["spec"]["serviceName"] == name


def test_pages_of_serve_are_read_only_with_a_key_where_it_asks_for_one() -> None:
    pages = config_file(objects_of(MINIMAL))["collector"]["scrape"]
    assert pages == ["http://live-ctxpipe-connect-all:9100/metrics"]
    keyed = rendered("-f", str(MINIMAL), "--set", "config.collector.scrape_key=${REDIS_URL}")
    assert len(config_file(keyed)["collector"]["scrape"]) == 3


def test_ctxpipe_takes_the_arguments(objects: Objects) -> None:
    for name, pod in pods(objects):
        role, *arguments = pod["spec"]["containers"][0]["args"]
        command = cli.get_command(click.Context(cli), role)
        assert command is not None, name
        command.make_context(role, list(arguments))


def test_no_secret_is_in_an_object_and_each_role_gets_its_own(everything: Objects) -> None:
    assert not any(one["kind"] == "Secret" for one in everything)
    for name, pod in pods(everything):
        (container,) = pod["spec"]["containers"]
        environment = {one["name"]: one for one in container["env"]}
        files = {key.removesuffix("_FILE"): one["value"] for key, one in environment.items() if key.endswith("_FILE")}
        assert set(files) == {
            "KAFKA_PASSWORD", "REDIS_URL", "SHOP_DSN", "WAREHOUSE_DSN", "METRICS_KEY", "CANARY_KEY", "SHOP_CANARY_DSN",
        }, name  # fmt: skip
        volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "secrets")
        sources = {
            item["path"]: one["secret"]["name"]
            for one in volume["projected"]["sources"]
            for item in one["secret"]["items"]
        }
        reader = container["name"] in ("collector", "serve")
        assert sources["SHOP_DSN"] == ("ctxpipe-shop-reader" if reader else "ctxpipe-shop"), name
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "secrets"]
        assert all(path == f"{mount['mountPath']}/{key}" for key, path in files.items())
        assert mount["readOnly"] is True


def test_network_policies_let_through_what_is_needed_and_nothing_else(everything: Objects) -> None:
    policies = {
        one["metadata"]["name"].removeprefix("live-ctxpipe-"): one["spec"] for one in of("NetworkPolicy", everything)
    }
    assert set(policies) == {"nothing-else", *ROLES}
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(everything)}
    assert chosen(policies["nothing-else"]["podSelector"]["matchLabels"], labels) == set(labels), "every pod, at least"
    assert policies["nothing-else"]["ingress"] == []
    for name, spec in policies.items():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        for rule in (*spec["ingress"], *spec["egress"]):
            peers = rule.get("from", []) + rule.get("to", [])
            assert peers, f"{name}: a rule without peers lets everybody through"
            assert rule["ports"], f"{name}: a rule without ports lets everything through"
    reached = {
        name: {port["port"] for rule in spec["egress"] for port in rule["ports"]} for name, spec in policies.items()
    }
    assert reached["nothing-else"] == {53}
    assert reached["serve"] == {9092, 6379}
    assert reached["connect"] == reached["worker"] == {9092, 6379, 5432}
    assert reached["canary"] == {9092, 6379, 5432, 8080}
    assert reached["collector"] == {9092, 6379, 5432, 8080, 9100}
    clients = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "orchestrators"}}}
    assert clients in policies["serve"]["ingress"][0]["from"]
    assert all(clients not in rule["from"] for name in ROLES[:2] for rule in policies[name]["ingress"])
    assert all(spec["ingress"] == [] for spec in (one["spec"] for one in of("NetworkPolicy", objects_of(MINIMAL))) if (
        spec["podSelector"]["matchLabels"].get("app.kubernetes.io/component") == "collector"
    )), "no Prometheus was named"  # fmt: skip


def test_rules_and_dashboards_are_those_of_deploy(everything: Objects) -> None:
    (rule,) = of("PrometheusRule", everything)
    written = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))]
    groups = [group for one in written for group in one["groups"]]
    assert len(groups) > 5
    base = "https://git.example.org/ctxpipe/blob/main/deploy/runbook.md"
    assert rule["spec"]["groups"] == json.loads(json.dumps(groups).replace("deploy/runbook.md", base))
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    boards = {
        key: text
        for one in of("ConfigMap", everything)
        if "grafana_dashboard" in one["metadata"]["labels"]
        for key, text in one["data"].items()
    }
    assert boards.keys() == {path.name for path in (ROOT / "deploy/grafana").glob("*.json")}
    for name, text in boards.items():
        assert json.loads(text) == json.loads((ROOT / "deploy/grafana" / name).read_text())
    marks = {one["metadata"]["labels"].get("grafana_dashboard") for one in of("ConfigMap", everything)}
    assert marks == {None, "1"}


def test_monitors_find_services_and_name_the_job_that_the_alerts_look_for(everything: Objects) -> None:
    scraped: dict[str, set[str]] = {}
    for monitor in of("ServiceMonitor", everything):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        services = [one for one in of("Service", everything) if wanted.items() <= one["metadata"]["labels"].items()]
        for endpoint in monitor["spec"]["endpoints"]:
            assert all(endpoint["port"] in {port["name"] for port in one["spec"]["ports"]} for one in services)
            assert {"targetLabel": "job", "replacement": "ctxpipe"} in endpoint["relabelings"]
        scraped[monitor["metadata"]["name"]] = {
            one["metadata"]["name"].removeprefix("live-ctxpipe-") for one in services
        }
    assert scraped["live-ctxpipe-serve"] == {"serve-pods"}
    assert scraped["live-ctxpipe-roles"] == {
        "connect-shop", "connect-ware-house", "worker-customer", "worker-texts", "collector", "canary",
    }  # fmt: skip
    serve = named(everything, "ServiceMonitor", "live-ctxpipe-serve")["spec"]["endpoints"][0]
    assert serve["authorization"]["credentials"] == {"name": "ctxpipe-metrics", "key": "api-key"}


def test_workers_keep_their_names_and_know_them(everything: Objects) -> None:
    assert config_file(everything)["kafka"]["group.instance.id"] == "${POD_NAME:-}"
    for one in of("StatefulSet", everything):
        if "worker" in one["metadata"]["name"]:
            environment = {env["name"]: env for env in one["spec"]["template"]["spec"]["containers"][0]["env"]}
            assert environment["POD_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_another_configuration_restarts_the_pods_and_the_same_does_not() -> None:
    def marks(*words: str) -> set[str]:
        found = pods(rendered("-f", str(EVERYTHING), *words))
        return {pod["metadata"]["annotations"]["ctxpipe/config"] for name, pod in found if not name.endswith("-check")}

    assert marks() == marks("--set", "serve.resources.cpu=4")
    assert not marks() & marks("--set", "config.redis.prefix=other")


def test_a_package_holds_the_rules_and_dashboards_too(tmp_path: Path) -> None:
    helm("package", str(CHART), "-d", str(tmp_path))
    (package,) = tmp_path.glob("*.tgz")
    assert rendered("-f", str(EVERYTHING), chart=package) == objects_of(EVERYTHING)


def test_an_own_config_map_stands_instead(tmp_path: Path) -> None:
    words = ("--set", "existingConfigMap=mine,networkPolicy.enabled=false,workers.one.role=bundles")
    made = rendered(*words)
    assert "ConfigMap" not in {one["kind"] for one in made}
    assert not any(mistakes(one, KUBERNETES[1]) for one in made)
    for _, pod in pods(made):
        volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "config")
        assert volume["projected"]["sources"][0]["configMap"] == {"name": "mine"}


WRONG_SHAPES = {
    "serve.replica=3": "at '/serve': additional properties 'replica' not allowed",
    "serve.port=80": "at '/serve/port': minimum: got 80, want 1,024",
    "serve.resources.memory=lots": "at '/serve/resources/memory'",
    "image.digest=latest": "at '/image/digest'",
    "drainSeconds=soon": "at '/drainSeconds': got string, want integer",
    "connect.sources[0]=My Shop": "at '/connect/sources/0'",
    "workers.Customer.role=bundles": "'Customer' does not match pattern",
    "secrets[0].name=A-B": "at '/secrets/0",
    "networkPolicy.clients[0].everybody=true": "at '/networkPolicy/clients/0'",
}


@pytest.mark.parametrize("wrong", WRONG_SHAPES)
def test_the_schema_refuses_what_has_the_wrong_shape(wrong: str) -> None:
    with pytest.raises(Refused) as refused:
        rendered("-f", str(MINIMAL), "--set", wrong)
    assert WRONG_SHAPES[wrong] in str(refused.value)


def test_what_does_not_go_together_is_told_all_at_once() -> None:
    wrong = (
        "config.access=null,serve.replicas=2,serve.autoscaling.enabled=true,canary.enabled=true,connect.sources[0]=shop,"
        "workers.a.autoscaling.enabled=true,workers.a.replicas=2,workers.b.replicas=9,networkPolicy.servers=null,"
        "serviceAccount.create=false,config.mask_secret=hunter2,config.running.drain_s=3,config.replica=${NOBODY}"
    )
    with pytest.raises(Refused) as refused:
        rendered("-f", str(MINIMAL), "--set", wrong)
    told = str(refused.value)
    assert "12 mistake(s) in the values of ctxpipe:" in told
    for text in (
        "config.running.drain_s: set drainSeconds",
        "config: mask_secret holds a secret; put it into a Secret",
        "config: ${NOBODY} is not among secrets: add {name: NOBODY",
        "serve: whoever reaches it could read everything: add config.access",
        "canary: config.canary is missing",
        "connect.sources: config.sources has no shop",
        "serviceAccount.name: name one that is there",
        "serve.replicas: the autoscaler decides it",
        "workers.a.replicas: KEDA decides it",
        "workers.a.autoscaling.groups: name them",
        "workers.b: 9 pods of 1 processes are more than the 8 partitions",
        "networkPolicy.servers: say where Kafka, Redis and the sources are",
    ):
        assert text in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "address", ["redis://user:pass@redis/0", "redis://:pass@redis/0", "postgresql://postgres:ctxpipe@db/shop"]
)
def test_an_address_with_a_password_is_refused(address: str) -> None:
    with pytest.raises(Refused, match="an address holds a password"):
        rendered("-f", str(MINIMAL), "--set", f"config.redis.url={address}")


def test_a_canary_that_nobody_builds_bundles_of_is_refused() -> None:
    with pytest.raises(Refused, match="nobody builds canary_shop"):
        rendered("-f", str(EVERYTHING), "--set", "workers.customer.contexts={customer}")


def of(kind: str, objects: Objects) -> Objects:
    return [one for one in objects if one["kind"] == kind]


def chosen(selector: Mapping[str, str], labels: Mapping[str, Mapping[str, str]]) -> set[str]:
    return {name for name, of_pod in labels.items() if selector.items() <= of_pod.items()}


def ports_of(objects: Objects, owner: str) -> set[str]:
    found: Iterator[Any] = (pod for name, pod in pods(objects) if name == owner)
    return {port["name"] for port in next(found)["spec"]["containers"][0]["ports"]}


def config_file(objects: Objects) -> dict[str, Any]:
    return dict(yaml.safe_load(named(objects, "ConfigMap", "live-ctxpipe-config")["data"]["ctxpipe.yaml"]))


def loaded(objects: Objects, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Read by ctxpipe itself, with the files that the pods have and the environment of a worker."""
    data = named(objects, "ConfigMap", "live-ctxpipe-config")["data"]
    worker = next(pod for name, pod in pods(objects) if name.endswith("-check"))
    config_volume = next(volume for volume in worker["spec"]["volumes"] if volume["name"] == "config")
    for source in config_volume["projected"]["sources"]:
        for item in next(iter(source.values()))["items"]:
            path = folder / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(data.get(item["key"], "{}"))
    monkeypatch.setenv("POD_NAME", "live-ctxpipe-worker-customer-0")
    for one in worker["spec"]["containers"][0]["env"]:
        if one["name"].endswith("_FILE"):
            file = folder / one["name"].lower()
            file.write_text("redis://redis:6379/0" if one["name"].startswith("REDIS") else "postgresql://db/shop")
            monkeypatch.setenv(one["name"], str(file))
    return load(folder / "ctxpipe.yaml")
