"""Somebody who signs and publishes, and a host that trusts only them."""

from dataclasses import dataclass, replace
from pathlib import Path

from registry.bundle.manifest import MANIFEST_FILE, write_manifest
from registry.bundle.signing import Signer, Trust, local_signer, local_trust, sign_bundle
from registry.host.compatibility import Host
from registry.records import EngineManifest, EngineVersion
from registry.serving.download import DEFAULT_PLAN, DownloadPlan
from registry.serving.fetch import Policy
from registry.store import Store

# Fits what `make_manifest` of conftest says of its engines.
HOST = Host("8.9", "NVIDIA L4", "580.95.05", "13.0", "11.0")


@dataclass(frozen=True)
class Publisher:
    signer: Signer
    trust: Trust
    plan: DownloadPlan = DEFAULT_PLAN

    @property
    def policy(self) -> Policy:
        return Policy(self.trust, HOST, plan=self.plan)

    def older(self, why: str) -> Policy:
        return replace(self.policy, older=why)

    def publish(self, store: Store, made: tuple[EngineManifest, Path]) -> EngineVersion:
        manifest, directory = made
        self.sign(manifest, directory)
        return store.publish(manifest, directory)

    def sign(self, manifest: EngineManifest, directory: Path) -> None:
        (directory / MANIFEST_FILE).write_bytes(write_manifest(manifest))
        sign_bundle(directory, self.signer)


def make_publisher(home: Path) -> Publisher:
    return Publisher(local_signer(home), local_trust(home))
