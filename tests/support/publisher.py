"""A publisher who signs and publishes, and a host that trusts only this publisher."""

from dataclasses import dataclass, replace
from pathlib import Path

from registry.bundle.manifest import MANIFEST_FILE, write_manifest
from registry.bundle.signing import Signer, Trust, local_signer, local_trust, sign_bundle
from registry.host.compatibility import Host
from registry.records import EngineManifest, EngineVersion
from registry.serving.download import DEFAULT_PLAN, DownloadPlan
from registry.serving.fetch import Policy
from registry.store import Store

# Compatible with the engines of `make_manifest`.
HOST = Host("8.9", "NVIDIA L4", "580.95.05", "13.0", "11.0")


@dataclass(frozen=True)
class Publisher:
    """A signing key, and the trust in it."""

    signer: Signer
    trust: Trust
    plan: DownloadPlan = DEFAULT_PLAN

    @property
    def policy(self) -> Policy:
        """What a host that trusts this publisher accepts."""
        return Policy(self.trust, HOST, plan=self.plan)

    def older(self, why: str) -> Policy:
        """Return a policy that accepts an older release for the reason `why`."""
        return replace(self.policy, older=why)

    def publish(self, store: Store, bundle: tuple[EngineManifest, Path]) -> EngineVersion:
        """Sign a bundle of `manifest_factory` and publish it."""
        manifest, directory = bundle
        self.sign(manifest, directory)
        return store.publish(manifest, directory)

    def sign(self, manifest: EngineManifest, directory: Path) -> None:
        """Write the manifest into its bundle folder, and sign it."""
        (directory / MANIFEST_FILE).write_bytes(write_manifest(manifest))
        sign_bundle(directory, self.signer)


def make_publisher(home: Path) -> Publisher:
    """Return a publisher whose key is under `home`, created if missing."""
    return Publisher(local_signer(home), local_trust(home))
